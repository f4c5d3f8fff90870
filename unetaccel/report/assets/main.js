// Controls of a report, bound to its state; then everything is started.

function choices(report, name, options) {
  const host = report.find(`[data-choice="${name}"]`);
  host.hidden = options.length < 2;
  host.replaceChildren(...options.map(([value, ...content]) => el("button", { type: "button", "data-value": value, onclick: () => report.set({ [name]: value }) }, ...content)));
  report.on([name], () => {
    for (const button of host.children) button.setAttribute("aria-pressed", button.dataset.value === String(report.state[name]));
  });
}

function selects(report, name, options) {
  for (const field of report.findAll(`select[data-set="${name}"]`)) {
    if (options) field.replaceChildren(...options.map(([value, words]) => el("option", { value }, words)));
    field.addEventListener("change", () => report.set({ [name]: field.value }));
    report.on([name], () => { field.value = report.state[name]; });
  }
}

function checks(report, name) {
  const field = report.find(`input[data-set="${name}"]`);
  field.addEventListener("change", () => report.set({ [name]: field.checked }));
  report.on([name], () => { field.checked = report.state[name]; });
}

function legend(report) {
  const host = report.find(".legend");
  report.on(["hidden"], () => {
    host.replaceChildren(...report.data.families.map((family) => {
      const key = family.name + family.kind, colour = report.colour(family), peer = family.kind === "peer";
      const swatch = svg("svg", { width: 26, height: 14, "aria-hidden": "true" },
        svg("line", { x1: 1, x2: 25, y1: 7, y2: 7, stroke: colour, "stroke-width": 2, "stroke-dasharray": peer ? "5 4" : null }),
        marker("circle", 13, 7, family.kind === "plain" ? 3.5 : 5, colour, peer));
      return el("button", { type: "button", "aria-pressed": !report.state.hidden.has(key) ? "true" : "false", onclick: () => {
        const hidden = new Set(report.state.hidden);
        if (!hidden.delete(key)) hidden.add(key);
        report.set({ hidden });
        [...host.children].find((button) => button.textContent === family.name)?.focus();
      } }, swatch, family.name);
    }));
  });
}

function stepsChoices(report) {
  const sign = (i) => svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, marker(SHAPES[i % SHAPES.length], 7, 7, 4.5, "currentColor", false));
  return [["all", "all steps"], ...report.data.steps.map((count, i) => [count, sign(i), String(count)])];
}

function start(article) {
  const data = JSON.parse(article.querySelector("script.data").textContent), report = new Report(article, data);
  selects(report, "metric", Object.entries(data.metrics).map(([name, metric]) => [name, metric.label]));
  choices(report, "axis", [["speedup", "speedup"], ["seconds", "time"], ["macs", "MACs"]]);
  choices(report, "steps", data.steps.length > 1 ? stepsChoices(report) : []);
  selects(report, "solver", data.solvers.map((name) => [name, name]));
  report.find("[data-solver]").hidden = data.solvers.length < 2;
  report.find("[data-peers]").hidden = !data.rows.some((row) => row.kind === "peer");
  for (const name of ["spread", "ceilings", "log", "peers", "difference"]) checks(report, name);
  choices(report, "cost", Object.entries(data.costs));
  selects(report, "order");
  selects(report, "selected", data.rows.map((row) => [row.id, `${report.called(row)} · ${row.family}`]));
  selects(report, "beside", [["plain", "plain run of as many steps"], ...Object.entries(data.costs).map(([cost, words]) => [cost, `plain run of ${words}`])]);
  legend(report);
  new Chart(report);
  new Pictures(report);
  filterable(report);
  report.on(["metric", "cost", "order", "peers", "log"], () => drawDuels(report));
  report.on(["selected"], () => {
    const row = report.rows.get(report.state.selected), [name, facts] = describe(report, row, Object.keys(data.metrics));
    report.find(".details").replaceChildren(name, ...[report.strip(row.id)].filter(Boolean), facts);
    mark(report, row.id);
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".scroll").forEach(cued);
document.querySelectorAll("article.quality").forEach(start);
