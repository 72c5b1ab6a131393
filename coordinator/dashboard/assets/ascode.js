// The chat on the screen as a program asks it.
(() => {
  let chat = null, language = "curl";

  const asked = () => {
    const { model, messages, temperature, max_tokens } = chat;
    const said = messages.length ? messages : [{ role: "user", content: "Hello!" }];
    return { model, messages: said, ...JSON.parse(JSON.stringify({ temperature, max_tokens })) };
  };
  // JSON's texts and numbers are Python's, too.
  const python = (values) => Object.entries(values).flatMap(([name, value]) => {
    if (name !== "messages") return [`    ${name}=${JSON.stringify(value)},`];
    const lines = value.map((m) => `        {"role": ${JSON.stringify(m.role)}, "content": ${JSON.stringify(m.content)}},`);
    return ["    messages=[", ...lines, "    ],"];
  });
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

  const written = {
    curl: (address) => [
      `curl ${address}/v1/chat/completions \\`,
      '  -H "Authorization: Bearer $POTLUCK_KEY" \\',
      '  -H "Content-Type: application/json" \\',
      `  -d ${quoted(JSON.stringify(asked(), null, 2))}`,
    ],
    openai: (address) => [
      "import os",
      "",
      "from openai import OpenAI",
      "",
      `client = OpenAI(base_url="${address}/v1", api_key=os.environ["POTLUCK_KEY"])`,
      "answer = client.chat.completions.create(",
      ...python(asked()),
      ")",
      "print(answer.choices[0].message.content)",
    ],
    potluck: (address) => [
      "from potluck import Pool",
      "",
      `with Pool("${address}") as pool:`,
      "    answer = pool.chat(",
      ...python(asked()).map((line) => `    ${line}`),
      "    )",
      "    print(answer.text)",
    ],
  };
  const show = () => {
    const place = document.getElementById("code");
    if (!place || !chat) return;
    place.textContent = written[language](document.getElementById("playground").dataset.address).join("\n");
  };

  document.addEventListener("potluck:chat", (event) => { chat = event.detail; show(); });
  document.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-code]");
    if (!choice) return;
    language = choice.dataset.code;
    for (const each of choice.parentElement.children) each.setAttribute("aria-pressed", String(each === choice));
    show();
  });
})();
