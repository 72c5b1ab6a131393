// Charts over time, with uPlot. An element with data-chart names where its columns are: {at: [s], series: [{label,
// values}]}, or {x: {label, values}, series} where the horizontal axis is no time. Each has a table as its twin.
(() => {
  const charts = new Map();
  const colour = (n) => getComputedStyle(document.documentElement).getPropertyValue(`--series-${(n % 4) + 1}`).trim();
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const options = (element, data, width) => {
    const timed = Boolean(data.at);
    const bars = element.classList.contains("bars");
    const beside = (n) => uPlot.paths.bars({ size: [0.4, 24], align: data.series.length < 2 ? 0 : n ? 1 : -1 });
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") } };
    return {
      width, height: 220, legend: { live: true },
      scales: { x: { time: timed }, y: { range: (u, low, high) => span(element, low, high) } },
      axes: [axis, { ...axis, size: 60 }],
      series: [
        { label: timed ? "Time" : data.x.label },
        ...data.series.map((one, n) => ({
          label: one.label, stroke: colour(n), width: 2, paths: bars ? beside(n) : undefined, spanGaps: true,
          points: { show: data.series[0].values.length < 40 && !bars },
          fill: bars ? colour(n) + "66" : undefined,
        })),
      ],
    };
  };
  const span = (element, low, high) => {
    if (low === null || high === null) return [0, 1];
    if (element.dataset.chartFrom === "data") {
      const margin = (high - low || 1) * 0.1;
      return [low - margin, high + margin];
    }
    return [Math.min(0, low), high > 0 ? high * 1.1 : 1];
  };

  const table = (element, data) => {
    const twin = element.querySelector("details tbody");
    const head = element.querySelector("details thead tr");
    const first = data.at ? data.at.map((at) => new Date(at * 1000).toLocaleString()) : data.x.values;
    const names = [data.at ? "Time" : data.x.label, ...data.series.map((one) => one.label)];
    head.replaceChildren(...names.map((name) => cell("th", name)));
    twin.replaceChildren(...first.map((x, row) => {
      const line = document.createElement("tr");
      line.append(cell("td", x), ...data.series.map((one) => cell("td", one.values[row] ?? "")));
      return line;
    }).reverse());
  };
  const cell = (kind, text) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (kind === "th") made.scope = "col";
    return made;
  };

  const draw = (element, data) => {
    let chart = charts.get(element);
    chart?.plot?.destroy();
    element.querySelector(".uplot")?.remove();
    if (!element.querySelector("details")) {
      element.insertAdjacentHTML("beforeend",
        "<details><summary>As a table</summary><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Values\"><table><thead><tr></tr></thead><tbody></tbody></table></div></details>");
    }
    const columns = [data.at || data.x.values, ...data.series.map((one) => one.values)];
    const plot = new uPlot(options(element, data, element.clientWidth), columns, (u, begin) => {
      element.prepend(u.root);
      begin();
    });
    plot.root.setAttribute("role", "img");
    plot.root.setAttribute("aria-label", element.dataset.label || "Chart");
    charts.set(element, { ...chart, plot, data });
    table(element, data);
  };

  const load = async (element) => {
    if (document.hidden || !element.isConnected) return;
    const answer = await fetch(element.dataset.chart, { headers: { accept: "application/json" } }).catch(() => null);
    if (!answer?.ok) return;
    const data = await answer.json();
    const known = charts.get(element);
    if (known?.plot && JSON.stringify(known.data.series.map((s) => s.label)) === JSON.stringify(data.series.map((s) => s.label))) {
      known.data = data;
      known.plot.setData([data.at || data.x.values, ...data.series.map((one) => one.values)]);
      table(element, data);
    } else {
      draw(element, data);
    }
  };

  const begin = (element) => {
    if (charts.has(element)) return;
    const every = Number(element.dataset.chartEvery || 0) * 1000;
    charts.set(element, { timer: every ? setInterval(() => load(element), every) : null });
    new ResizeObserver(() => {
      charts.get(element)?.plot?.setSize({ width: element.clientWidth, height: 220 });
    }).observe(element);
    load(element);
  };

  document.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-chart-span]");
    if (!choice) return;
    for (const one of choice.parentElement.children) one.setAttribute("aria-pressed", String(one === choice));
    const element = choice.closest(".card").querySelector("[data-chart]");
    element.dataset.chart = element.dataset.chart.replace(/span=\w+/, `span=${choice.dataset.chartSpan}`);
    load(element);
  });
  document.addEventListener("potluck:theme", () => {
    for (const [element, chart] of charts) if (chart.data) draw(element, chart.data);
  });
  document.addEventListener("visibilitychange", () => { for (const element of charts.keys()) load(element); });
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("[data-chart]").forEach(begin));
})();
