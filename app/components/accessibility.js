/* What Streamlit's page lacks for who sees or steers it otherwise.
 *
 * A link before everything else, seen once it has the focus: from the browser's bar to what the page is about takes one
 * press of Tab and Enter, not one for every link of the side bar. And the ink of buttons: Streamlit writes on primary
 * ones in white, which cannot be read on the light primary colour of a dark page, and on a pressed one without a border
 * in a darker shade of it, which cannot be read on that page itself. And no fading of what a page draws again by itself:
 * Streamlit pales whatever takes half a second to draw, so that the pictures of a live training would come and go every
 * few seconds. What is meant stands in a container of the key "live". And a row that stays in sight while the page below
 * it is scrolled, by Streamlit itself where the page has a field for messages: the key "in_sight".
 */

const SKIP_LINK = "moescope-skip-link";
// A page with a field for messages below has the second one.
const MAIN = "[data-testid=stMain], [data-testid=stAppScrollToBottomContainer]";
const buttons = new CSSStyleSheet();
document.adoptedStyleSheets.push(buttons);

export default function (component) {
  const { page, text } = component.data;
  buttons.replaceSync(`
    [data-testid="stBaseButton-primary"] { color: ${page} !important; }
    [data-testid="stPopoverButton"]:is([aria-expanded="true"], :hover, :active),
    [data-testid="stBaseButton-tertiary"]:is(:hover, :active) { color: ${text} !important; }
    [data-testid="stLayoutWrapper"]:has(> .st-key-in_sight) {
      position: sticky; top: 3.75rem; z-index: 10; padding: 0.35rem 0; background: ${page};
    }
    .st-key-live [data-stale="true"] { opacity: 1 !important; transition: none !important; }
  `);
  if (!document.getElementById(SKIP_LINK)) addSkipLink();
  const main = document.querySelector(MAIN);
  if (main) main.role = "main"; // a landmark: what is outside of all is passed over by who jumps from one to the next
}

function addSkipLink() {
  const link = document.createElement("a");
  link.id = SKIP_LINK;
  link.href = "#stMain";
  link.textContent = "Skip to the page's content";
  Object.assign(link.style, {
    position: "fixed",
    top: "0.5rem",
    left: "-100rem",
    zIndex: "1000000",
    padding: "0.5rem 1rem",
    borderRadius: "6px",
    background: "#1f4e8c",
    color: "#ffffff",
    font: "600 1rem sans-serif",
  });
  link.addEventListener("focus", () => (link.style.left = "0.5rem"));
  link.addEventListener("blur", () => (link.style.left = "-100rem"));
  link.addEventListener("click", (event) => {
    event.preventDefault(); // the address stays that of the page
    const target = skipTarget();
    if (!target) return;
    if (!target.hasAttribute("tabindex")) target.tabIndex = -1;
    target.focus();
    target.scrollIntoView({ block: "nearest" });
  });
  document.body.prepend(link);
}

/* The tokens where the page shows some, else its title. */
function skipTarget() {
  const main = document.querySelector(MAIN);
  if (!main) return null;
  for (const node of main.querySelectorAll("*")) {
    const tokens = node.shadowRoot && node.shadowRoot.querySelector("[role=listbox]");
    if (tokens) return tokens;
  }
  return main.querySelector("h1") || main;
}
