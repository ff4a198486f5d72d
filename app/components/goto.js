/* Goes to another page of this application as its own links do: one step of the browser's history, without a reload.
 *
 * Streamlit listens for steps through the history and takes page and choices from the address.
 */

export default function (component) {
  const { page, query } = component.data;
  if (!query) return;
  const address = new URL(page, window.location.href);
  address.search = query;
  if (address.href === window.location.href) return;
  window.history.pushState({}, "", address);
  window.dispatchEvent(new PopStateEvent("popstate", { state: {} }));
}
