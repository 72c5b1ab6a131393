// What pages do by themselves: times in the reader's zone, copy buttons, the menu on small screens, forms that are
// sent once. Whatever the pool knows comes from the pool.
(() => {
  const zone = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

  const prepare = (root) => {
    for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.title = time.textContent;
      time.textContent = zone.format(at);
      time.dataset.local = "";
    }
    for (const form of root.querySelectorAll("form[data-once]:not([data-numbered])")) number(form);
  };

  // A key of its own for each sending: a second click, or a request that is sent again, does nothing twice.
  const number = (form) => {
    form.dataset.numbered = "";
    let field = form.querySelector("input[name=once]");
    if (!field) {
      field = document.createElement("input");
      field.type = "hidden";
      field.name = "once";
      form.append(field);
    }
    field.value = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now();
  };

  // What a form is answered stays in sight wherever the page is, until it is clicked or Escape is pressed.
  const dismiss = () => document.getElementById("notice")?.replaceChildren();
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") dismiss(); });

  document.addEventListener("click", async (event) => {
    if (event.target.closest("#notice") && !event.target.closest("a, button")) return dismiss();
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      const text = document.querySelector(copy.dataset.copy).textContent;
      const said = copy.textContent;
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(document.querySelector(copy.dataset.copy));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        copy.textContent = "Press Ctrl+C";
      }
      setTimeout(() => { copy.textContent = said; }, 1500);
      return;
    }
    const menu = event.target.closest(".menu");
    if (menu) {
      const open = document.getElementById("nav").classList.toggle("open");
      menu.setAttribute("aria-expanded", String(open));
    }
  });

  document.addEventListener("htmx:after:request", (event) => {
    const form = event.target.closest?.("form[data-once], form[data-reset]");
    const ok = event.detail.ctx?.response?.raw?.ok;
    if (!form || !ok) return;
    if (form.matches("[data-reset]")) form.reset();
    if (form.matches("[data-once]")) number(form);
  });
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) location.assign("/sign-in?next=" + encodeURIComponent(location.pathname));
  });
  for (const name of ["htmx:after:swap", "htmx:sse:after:message"]) {
    document.addEventListener(name, () => prepare(document));
  }
  document.addEventListener("DOMContentLoaded", () => {
    prepare(document);
    const field = document.querySelector("[data-from-fragment]");
    if (field && location.hash.length > 1) {
      field.value = decodeURIComponent(location.hash.slice(1));
      history.replaceState(null, "", location.pathname);
    }
  });
})();
