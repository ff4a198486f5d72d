/* What Streamlit's page lacks for who sees or steers it otherwise.
 *
 * A link before everything else, seen once it has the focus: from the browser's bar to what the page is about takes one
 * press of Tab and Enter, not one for every link of the side bar. And the ink of buttons: Streamlit writes on primary
 * ones in white, which cannot be read on the light primary colour of a dark page, and on a pressed one without a border
 * in a darker shade of it, which cannot be read on that page itself. And one step of the browser's Back for each
 * page: Streamlit adds one for every choice that the server writes into the address, so that Back would lead through
 * half chosen states of one page. A choice made by hand takes the place of the address that was there, as here. And
 * no fading of what a page draws again by itself: Streamlit pales whatever takes half a second to draw, so that the
 * pictures of a live training would come and go every few seconds. What is meant stands in a container of the key "live".
 */

const SKIP_LINK = "moescope-skip-link";
const buttons = new CSSStyleSheet();
document.adoptedStyleSheets.push(buttons);

const ONE_STEP = Symbol.for("moescope-one-step");
if (!history[ONE_STEP]) {
  history[ONE_STEP] = true;
  keepOneStep(history.pushState.bind(history), history.replaceState.bind(history));
}

export default function (component) {
  const { ink, text } = component.data;
  buttons.replaceSync(`
    [data-testid="stBaseButton-primary"] { color: ${ink} !important; }
    [data-testid="stPopoverButton"]:is([aria-expanded="true"], :hover, :active),
    [data-testid="stBaseButton-tertiary"]:is(:hover, :active) { color: ${text} !important; }
    .st-key-live [data-stale="true"] { opacity: 1 !important; transition: none !important; }
  `);
  if (!document.getElementById(SKIP_LINK)) addSkipLink();
  const main = document.querySelector("[data-testid=stMain]");
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
  const main = document.querySelector("[data-testid=stMain]");
  if (!main) return null;
  for (const node of main.querySelectorAll("*")) {
    const tokens = node.shadowRoot && node.shadowRoot.querySelector("[role=listbox]");
    if (tokens) return tokens;
  }
  return main.querySelector("h1") || main;
}

function keepOneStep(push, replace) {
  let kept = location.href; // the address as the user left it, with what he chose
  let wentBack = false; // and has touched nothing since
  addEventListener("popstate", () => (wentBack = true), true);
  for (const gesture of ["pointerdown", "keydown", "click"]) {
    addEventListener(gesture, () => ((wentBack = false), (kept = location.href)), true);
  }
  history.replaceState = (state, title, address) => {
    replace(state, title, address);
    kept = location.href;
  };
  history.pushState = (state, title, address) => {
    const next = new URL(address ?? location.href, location.href);
    if (next.pathname === location.pathname) {
      // What Back has restored keeps its choices: a page that was left while it started still writes its own.
      const loses = [...new URLSearchParams(location.search).keys()].some((key) => !next.searchParams.has(key));
      if (!(wentBack && loses)) replace(state, title, address);
    } else if (!wentBack) { // else a message about the page that Back has left, which came late
      // Before the next page's address Streamlit writes its choices into that of the page that is left.
      if (new URL(kept).pathname === location.pathname) replace(history.state, title, kept);
      push(state, title, address);
    }
  };
}
