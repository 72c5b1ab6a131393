// Runs before the first paint, so that a page never flashes in the other theme.
(() => {
  const key = "potluck-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    document.documentElement.dataset.theme = localStorage.getItem(key) || (system.matches ? "dark" : "light");
  };
  show();
  system.addEventListener("change", show);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-switch]")) return;
    localStorage.setItem(key, document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    show();
    document.dispatchEvent(new Event("potluck:theme"));
  });
})();
