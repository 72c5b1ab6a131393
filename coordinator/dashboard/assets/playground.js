// A chat over /v1/chat/completions, with the page's cookie and token. It lives on this page; whoever wants it kept has
// it kept by this browser. What a model writes goes into the page as text and never as markup.
(() => {
  const CALM_MS = 100; // between two looks at the clock while nothing comes
  const SLOW_MS = 3000; // from then on one may want to know what a job waits for
  const one = (id) => document.getElementById(id);
  const turns = []; // {role, content, reasoning, facts, trouble}: trouble is not sent again, nor its question
  let running = null; // {abort, job, stopped}

  const headers = () => {
    const sent = JSON.parse(document.body.getAttribute("hx-headers:inherited") || "{}");
    return { "content-type": "application/json", ...sent };
  };

  // ---- what is asked

  const settings = () => {
    const number = (id) => (one(id).value.trim() === "" ? undefined : Number(one(id).value));
    return { model: one("model").value, temperature: number("temperature"), max_tokens: number("max-tokens") };
  };
  const messages = () => {
    const system = one("system").value.trim();
    const said = turns.filter((turn, n) => !turn.trouble && !turns[n + 1]?.trouble && (turn.content || turn.role === "user"));
    const plain = said.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...plain] : plain;
  };
  const changed = () => {
    const draft = running ? "" : one("message").value.trim();
    const sent = messages();
    if (draft) sent.push({ role: "user", content: draft });
    while (sent.at(-1)?.role === "assistant") sent.pop(); // a program gets it by asking what is before it
    document.dispatchEvent(new CustomEvent("potluck:chat", { detail: { ...settings(), messages: sent } }));
    one("model-hint").textContent = one("model").selectedOptions[0].dataset.hint;
    one("empty").hidden = turns.length > 0;
    keep();
  };

  // ---- what is kept, if anything

  const key = () => `potluck-chat:${one("playground").dataset.member}`;
  const fields = ["model", "system", "temperature", "max-tokens"];
  const keep = () => {
    if (!one("keep").checked) return localStorage.removeItem(key());
    const kept = turns.map(({ role, content, reasoning, facts }) => ({ role, content, reasoning, facts }));
    const values = Object.fromEntries(fields.map((id) => [id, one(id).value]));
    localStorage.setItem(key(), JSON.stringify({ turns: kept.filter((turn) => turn.content), values }));
  };
  const restore = () => {
    const kept = JSON.parse(localStorage.getItem(key()) || "null");
    if (!kept) return;
    one("keep").checked = true;
    for (const id of fields) if (id !== "model" || !location.search) one(id).value = kept.values[id] ?? "";
    if (one("model").selectedIndex < 0) one("model").selectedIndex = 0;
    for (const turn of kept.turns) show(add(turn));
  };

  // ---- what is shown

  const made = (kind, text = "", classes = "") => {
    const element = document.createElement(kind);
    element.textContent = text;
    element.className = classes;
    return element;
  };
  const add = (turn) => {
    turns.at(-1)?.element.querySelector("button")?.remove(); // what failed is tried again only at the end
    turns.push(turn);
    turn.element = made("article", "", `turn ${turn.role}`);
    one("turns").append(turn.element);
    return turn;
  };
  // Text, with what stands between lines of three backticks as code.
  const written = (text) => text.split(/^```/m).map((part, n) => {
    if (n % 2 === 0) return made("div", n ? part.replace(/^[^\n]*\n?/, "") : part, "said");
    const code = made("pre", part.replace(/^[^\n]*\n?/, ""));
    code.tabIndex = 0;
    return code;
  }).filter((element) => element.textContent);

  const show = (turn) => {
    const follow = innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
    const open = turn.element.querySelector("details")?.open;
    const parts = [made("h3", turn.role === "user" ? "You" : turn.model || "Answer")];
    if (turn.reasoning) {
      const folded = document.createElement("details");
      folded.open = Boolean(open);
      folded.append(made("summary", turn.content || turn.facts ? "Reasoning" : "Thinking …"), made("div", turn.reasoning, "said"));
      parts.push(folded);
    }
    parts.push(...written(turn.content));
    if (turn.waiting) parts.push(waiting(turn));
    if (turn.loading) parts.push(loading(turn.loading));
    if (turn.trouble) parts.push(trouble(turn));
    if (turn.facts) parts.push(facts(turn.facts));
    turn.element.replaceChildren(...parts);
    if (follow) scrollTo(0, document.documentElement.scrollHeight);
  };
  const waiting = (turn) => {
    const line = made("p", turn.waiting, "hint");
    if (!turn.slow) return line;
    const link = made("a", "Where it stands");
    link.href = "/jobs?state=queued";
    line.append(" ", link);
    return line;
  };
  const facts = (found) => {
    const line = made("p", found.words.join(" · "), "hint facts");
    if (found.charge !== undefined) {
      const charge = made("data", credits(found.charge));
      charge.value = found.charge;
      line.append(line.textContent ? " · " : "", charge, " credits");
    }
    if (found.job) {
      const link = made("a", "its job");
      link.href = `/jobs/${found.job}`;
      line.append(" · ", link);
    }
    return line;
  };
  const trouble = (turn) => {
    const said = made("p", turn.trouble.message, "callout bad");
    said.setAttribute("role", "alert");
    if (turn.trouble.status === 402) {
      const link = made("a", "How do I earn?");
      link.href = "/credits#earn";
      said.append(" ", link);
    }
    if (turn === turns.at(-1) && !running) {
      const again = made("button", "Try again", "quiet");
      again.type = "button";
      again.addEventListener("click", () => { turns.pop(); turn.element.remove(); answer(); });
      said.append(" ", again);
    }
    return said;
  };
  const loading = (found) => {
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", "The model's progress");
    if (found.bytes_total) [bar.max, bar.value] = [found.bytes_total, found.bytes_done];
    return bar;
  };
  const seconds = (ms) => (ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`);

  // ---- asking

  class Refused extends Error {
    constructor(status, error, after) {
      super(error?.message || "The pool did not answer as it should. Try again.");
      Object.assign(this, { status, code: error?.code, loading: error?.loading, potluck: error?.potluck, after });
    }
  }
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", piece; !(piece = await reader.read()).done;) {
      const lines = (rest + piece.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
      }
    }
  }
  const attempt = async (turn, body) => {
    const began = performance.now();
    const clock = setInterval(() => {
      turn.waiting = `Waiting for the first token: ${seconds(performance.now() - began)}.`;
      turn.slow = performance.now() - began > SLOW_MS;
      show(turn);
    }, CALM_MS);
    let first = 0, last = 0, painted = false, usage = null, ending = "";
    const paint = () => { painted = false; show(turn); };
    try {
      const response = await fetch("/v1/chat/completions", {
        method: "POST", headers: headers(), signal: running.abort.signal,
        body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      });
      if (!response.ok) {
        const said = await response.json().catch(() => ({}));
        throw new Refused(response.status, said.error, Number(response.headers.get("retry-after")));
      }
      running.job = turn.job = response.headers.get("x-potluck-job-id");
      for await (const event of events(response.body)) {
        if (event.error) throw new Refused(0, event.error);
        usage = event.usage || usage;
        const { delta, finish_reason: reason } = event.choices?.[0] || {};
        ending = reason || ending;
        if (!delta?.content && !delta?.reasoning_content) continue;
        last = performance.now();
        first = first || last;
        clearInterval(clock);
        turn.waiting = "";
        turn.reasoning += delta.reasoning_content || "";
        turn.content += delta.content || "";
        if (!painted) { painted = true; requestAnimationFrame(paint); }
      }
      const tokens = usage.completion_tokens;
      const words = [`${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`];
      const [from, made] = last - first > CALM_MS ? [first, tokens - 1] : [began, tokens]; // a short one comes at once
      if (made) words.push(`${((made * 1000) / (last - from)).toFixed(1)} tokens/s`);
      if (first) words.push(`first after ${seconds(first - began)}`);
      if (ending === "length") words.push("cut off at its most tokens");
      turn.facts = { words, charge: usage.potluck.charge, job: usage.potluck.job_id };
    } finally {
      clearInterval(clock);
      [turn.waiting, turn.slow] = ["", false];
    }
  };
  const pause = (ms, signal) => new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
  // A model that is still loading is asked again by itself, until it answers or somebody stops it.
  const patiently = async (turn, body) => {
    for (;;) {
      try {
        return await attempt(turn, body);
      } catch (error) {
        if (!error.loading || running.stopped) throw error;
        turn.loading = error.loading;
        const left = error.loading.eta_s ? ` About ${Math.ceil(error.loading.eta_s)} s are left.` : "";
        turn.waiting = `${error.message}${left} It is asked again in ${error.after || 5} s.`;
        show(turn);
        await pause((error.after || 5) * 1000, running.abort.signal);
        turn.loading = null;
      }
    }
  };
  const answer = async () => {
    const asked = { ...settings(), messages: messages() };
    running = { abort: new AbortController(), job: "", stopped: false };
    const turn = add({ role: "assistant", content: "", reasoning: "", model: asked.model });
    busy(true);
    show(turn);
    try {
      await patiently(turn, asked);
    } catch (error) {
      ended(turn, error);
    }
    running = null;
    busy(false);
    show(turn);
    changed();
  };
  const ended = (turn, error) => {
    [turn.loading, turn.waiting] = [null, ""];
    if (error.status === 401) location.assign("/sign-in?next=/playground");
    if (running.stopped) {
      const charge = error.potluck?.charge ?? (turn.job ? undefined : 0);
      turn.facts = { words: [turn.content ? "Stopped by you" : "Stopped before the answer"], charge, job: turn.job };
    } else {
      const lost = error instanceof Refused ? error.message : "The connection to the pool was lost. Try again.";
      turn.trouble = { message: lost, status: error.status };
      if (error.potluck?.job_id) turn.facts = { words: [], charge: error.potluck.charge, job: error.potluck.job_id };
    }
  };
  // A job that is known is cancelled by its name, and the stream ends with what it cost; else the request is left.
  const stop = async () => {
    running.stopped = true;
    const { abort, job } = running;
    const cancelled = job && await fetch(`/pool/v1/jobs/${job}/cancel`, { method: "POST", headers: headers() }).catch(() => null);
    if (!cancelled?.ok) abort.abort();
  };
  const busy = (is) => {
    one("send").disabled = is;
    one("stop").hidden = !is;
    one("new").disabled = is;
    one("turns").setAttribute("aria-busy", String(is));
  };

  document.addEventListener("DOMContentLoaded", () => {
    if (!one("playground")) return;
    restore();
    changed();
    one("playground").addEventListener("input", changed);
    one("stop").addEventListener("click", stop);
    one("new").addEventListener("click", () => {
      turns.length = 0;
      one("turns").replaceChildren();
      changed();
      one("message").focus();
    });
    one("message").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      one("ask").requestSubmit();
    });
    one("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const content = one("message").value.trim();
      const wrong = ["temperature", "max-tokens"].find((id) => !one(id).reportValidity());
      if (running || !content || wrong) return;
      show(add({ role: "user", content }));
      one("message").value = "";
      answer();
    });
    one("send").disabled = one("message").disabled = false;
  });
})();
