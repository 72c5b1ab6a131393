// Uploads the files of a form with a bar, asks what a fine-tune would cost, and begins it, or a batch, when told to.
(() => {
  const uploaded = new WeakMap(); // File -> its id: what is here already is not sent again
  const headers = () => JSON.parse(document.body.getAttribute("hx-headers:inherited") || "{}");
  const fresh = () => (crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2) + Date.now());
  let form, place, asked, once = fresh(); // the same form that is sent twice begins one thing

  const made = (kind, text = "", classes = "") => {
    const element = document.createElement(kind);
    element.textContent = text;
    element.className = classes;
    return element;
  };
  const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${Math.round(bytes / 1e5) / 10} MB`);

  // fetch cannot say how much of a body was sent: this is what the older interface is for.
  const upload = (file, purpose) => new Promise((resolve, reject) => {
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", `Upload of ${file.name}`);
    const line = made("p", `${file.name}, ${size(file.size)}`, "hint");
    place.append(line, bar);
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) [bar.max, bar.value] = [event.total, event.loaded];
    });
    request.addEventListener("load", () => {
      const answer = parsed(request.responseText);
      if (request.status < 300) resolve(answer.id);
      else reject(new Error(answer.error?.message || "The file was not taken."));
    });
    request.addEventListener("error", () => reject(new Error("The connection to the pool was lost. Try again.")));
    const body = new FormData();
    body.append("purpose", purpose);
    body.append("file", file);
    request.send(body);
  });
  const parsed = (text) => { try { return JSON.parse(text); } catch { return {}; } };

  const ids = async () => {
    const found = {};
    for (const input of form.querySelectorAll("input[type=file]")) {
      const [file] = input.files;
      if (!file) continue;
      if (file.size > Number(form.dataset.bytesMax)) throw new Error(`${file.name} is larger than ${size(form.dataset.bytesMax)}, the most that this pool takes.`);
      if (!uploaded.has(file)) uploaded.set(file, await upload(file, input.dataset.purpose));
      found[input.name] = uploaded.get(file);
    }
    return found;
  };
  const post = async (path, body, key) => {
    const more = key ? { "idempotency-key": key } : {};
    const response = await fetch(path, {
      method: "POST", headers: { "content-type": "application/json", ...headers(), ...more }, body: JSON.stringify(body),
    });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.error?.message || "The pool did not answer as it should. Try again.");
    return answer;
  };

  const finetune = (files) => {
    const value = (name) => form.elements[name].value.trim();
    const number = (names) => Object.fromEntries(names.filter((name) => value(name)).map((name) => [name, Number(value(name))]));
    const hyperparameters = number(["n_epochs", "batch_size", "learning_rate_multiplier"]);
    return {
      model: value("model"), ...files, ...(value("suffix") ? { suffix: value("suffix") } : {}),
      method: { type: value("method"), [value("method")]: { hyperparameters } },
      potluck: number(["rank", "workers"]),
    };
  };
  const shown = (said) => {
    const facts = [
      ["Credits at most", credits(said.quote)], ["Examples", said.examples], ["Cut", said.cut], ["Tokens", said.tokens],
      ["Epochs", said.epochs], ["Steps", said.steps], ["To check with", said.validation_examples],
    ];
    document.querySelector("#quote dl").replaceChildren(...facts.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(made("dt", name), made("dd", value.toLocaleString("en")));
      return pair;
    }));
    document.getElementById("quote").hidden = false;
    document.getElementById("begin").focus();
  };
  const busily = async (button, work) => {
    button.disabled = true;
    document.getElementById("notice").replaceChildren();
    try {
      await work();
    } catch (error) {
      document.getElementById("notice").replaceChildren(made("p", error.message, "callout bad"));
      scrollTo(0, 0);
    }
    button.disabled = false;
  };

  document.addEventListener("DOMContentLoaded", () => {
    form = document.getElementById("submit");
    place = document.getElementById("uploading");
    form.addEventListener("input", () => {
      once = fresh();
      const quote = document.getElementById("quote");
      if (quote) quote.hidden = true; // it was of something else
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      busily(form.querySelector("button"), async () => {
        place.replaceChildren();
        const files = await ids();
        if (form.dataset.kind === "batch") {
          const body = { ...files, endpoint: form.elements.endpoint.value, completion_window: `${form.elements.hours.value}h` };
          location.assign(`/jobs/${(await post("/v1/batches", body, once)).id}`);
          return;
        }
        asked = finetune(files);
        shown(await post("/v1/fine_tuning/jobs", { ...asked, potluck: { ...asked.potluck, dry_run: true } }));
      });
    });
    document.getElementById("begin")?.addEventListener("click", (event) => busily(event.target, async () => {
      location.assign(`/jobs/${(await post("/v1/fine_tuning/jobs", asked, once)).id}`);
    }));
  });
})();
