/* One step of the browser's Back for each page.
 *
 * Streamlit adds one for every choice that the server writes into the address, so that Back would lead through half
 * chosen states of one page. A choice made by hand takes the place of the address that was there, as here.
 */

const ONE_STEP = Symbol.for("moescope-one-step");
if (!history[ONE_STEP]) {
  history[ONE_STEP] = true;
  keepOneStep(history.pushState.bind(history), history.replaceState.bind(history));
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
