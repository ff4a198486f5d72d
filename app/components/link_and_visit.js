/* What the row above every page leaves to the browser: the link to copy, and whether somebody is here the first time.
 *
 * The link is what the address bar shows; streamlit does not tell Python. That the tour was seen is remembered in this
 * browser alone. A browser that remembers nothing is never shown it unasked, as it would come back each time.
 */

const SEEN = "moescope-tour-seen";
const SAID_MS = 2500;
let asked = false; // the question whether this is a first visit, once for each load of the page

export default function (component) {
  const { data, parentElement, setStateValue, setTriggerValue } = component;
  const button = parentElement.querySelector("button");
  button.onclick = () => copy(parentElement, button);
  parentElement.querySelector(".said-tour").textContent = data.tour;
  if (data.seen) remember();
  if (!asked && !data.tour) {
    asked = true;
    if (isFirstVisit()) setStateValue("first_visit", true);
  }
  const onKey = (event) => {
    if (event.key === "Escape" && data.tour && !event.defaultPrevented) setTriggerValue("closed", true);
  };
  document.addEventListener("keydown", onKey);
  return () => document.removeEventListener("keydown", onKey);
}

/* Nothing was shown to this browser before, and it came to the dashboard, not to something in it by a link. */
function isFirstVisit() {
  const [load] = performance.getEntriesByType("navigation");
  const address = new URL(load ? load.name : location.href);
  if (address.search || !address.pathname.endsWith("/")) return false;
  try {
    if (localStorage.getItem(SEEN)) return false;
    localStorage.setItem(`${SEEN}?`, "?"); // throws where nothing can be kept
    localStorage.removeItem(`${SEEN}?`);
    return true;
  } catch {
    return false;
  }
}

function remember() {
  try {
    localStorage.setItem(SEEN, "yes");
  } catch {
    /* then it was not shown unasked either */
  }
}

async function copy(root, button) {
  const field = root.querySelector(".by-hand");
  const input = field.querySelector("input");
  const said = root.querySelector(".said");
  try {
    await navigator.clipboard.writeText(location.href);
    field.hidden = true;
    button.querySelector("span").textContent = said.textContent = "Copied";
    setTimeout(() => {
      button.querySelector("span").textContent = "Copy link";
      said.textContent = "";
    }, SAID_MS);
  } catch {
    // Refused, or the page is not served securely: whoever reads copies it by hand.
    field.hidden = false;
    input.value = location.href;
    input.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      field.hidden = true;
      button.focus();
    };
    input.focus();
    input.select();
    said.textContent = "The browser does not let a page copy: the link is selected, copy it with Ctrl+C.";
  }
}
