/* What Streamlit's page lacks for who sees or steers it otherwise.
 *
 * A link before everything else, seen once it has the focus: from the browser's bar to what the page is about takes one
 * press of Tab and Enter, not one for every link of the side bar. And the ink of primary buttons: Streamlit writes in
 * white, which cannot be read on the light primary colour of a dark page.
 */

const SKIP_LINK = "moescope-skip-link";
const buttons = new CSSStyleSheet();
document.adoptedStyleSheets.push(buttons);

export default function (component) {
  buttons.replaceSync(`[data-testid="stBaseButton-primary"] { color: ${component.data.ink} !important; }`);
  if (!document.getElementById(SKIP_LINK)) addSkipLink();
}

function addSkipLink() {
  const link = document.createElement("a");
  link.id = SKIP_LINK;
  link.href = "#main";
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
  const main = document.querySelector("[data-testid=stMain]");
  if (!main) return null;
  for (const node of main.querySelectorAll("*")) {
    const tokens = node.shadowRoot && node.shadowRoot.querySelector("[role=listbox]");
    if (tokens) return tokens;
  }
  return main.querySelector("h1") || main;
}
