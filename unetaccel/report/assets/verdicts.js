// Each method row beside the plain run of equal cost, one line each: negative results are lines like the others.

function drawDuels(report) {
  const { metric, cost, order, peers, selected } = report.state, host = report.find(".duels");
  if (!metric) return;
  const rows = report.data.rows.filter((row) => row.kind === "method" || (peers && row.kind === "peer"));
  const worth = (row) => { const s = row.scores[metric]; return s && s.verdicts[cost] ? s.verdicts[cost].worth : -Infinity; };
  if (order === "best") rows.sort((a, b) => worth(b) - worth(a));
  const scores = rows.flatMap((row) => [row.scores[metric], report.scoreTo(report.rows.get(row.rivals[cost]), metric, row.steps)]).filter((s) => s && s.value !== null);
  const values = scores.flatMap((s) => [s.value - (s.sd || 0), s.value + (s.sd || 0)]);
  const log = report.state.log && Math.min(...values) > 0;
  const x = values.length ? scale(...domain(values, log), 0, 100, log) : null;
  const label = report.data.metrics[metric].label, what = report.data.costs[cost];
  host.replaceChildren(
    el("div", { class: "duel head" }, el("span", {}, "row"), el("span", {}, `${label}: ● row, ○ plain run`), el("span", {}, `against the plain run of ${what}`)),
    ...rows.map((row) => duel(report, row, x)),
  );
  mark(report, selected);
}

function duel(report, row, x) {
  const { metric, cost } = report.state, score = row.scores[metric], rival = report.rows.get(row.rivals[cost]);
  const against = score && score.verdicts[cost];
  const { word, mark: sign } = against ? WORDS[against.ahead] : { word: "level", mark: "" };
  const by = against && against.gain ? ` by ${against.gain}` : "";
  const theirs = report.scoreTo(rival, metric, row.steps);
  return el("div", { class: "duel", "data-id": row.id },
    el("button", { class: "what", type: "button", onclick: () => report.set({ selected: row.id }) }, report.called(row), el("small", {}, row.family)),
    dumbbell(x, score, theirs, word),
    el("span", { class: `says ${word}` }, against ? `${sign} ${SAID[word]}${word === "level" ? "" : by}` : theirs && score ? "not judged: one seed, or few pictures" : rival && rival.id === row.plain ? "the run of this cost is the one that it is compared with" : "no rival of this cost in the file",
      el("small", {}, `${report.score(row, metric)}${theirs ? ` against ${theirs.text} (${rival.label})` : ""}`)));
}

// Both scores on one line, with their spreads.
function dumbbell(x, ours, theirs, word) {
  const figure = svg("svg", { "aria-hidden": "true" });
  if (!x) return figure;
  const at = (s) => `${x(s.value)}%`, known = (s) => s && s.value !== null, colour = `var(--${word})`;
  figure.append(svg("line", { x1: 0, x2: "100%", y1: 11, y2: 11, stroke: "var(--faint)", "stroke-width": 1 }));
  if (known(ours) && known(theirs)) figure.append(svg("line", { x1: at(ours), x2: at(theirs), y1: 11, y2: 11, stroke: colour, "stroke-width": 3, opacity: 0.45 }));
  for (const s of [theirs, ours]) if (known(s) && s.sd) figure.append(svg("line", { x1: `${x(s.value - s.sd)}%`, x2: `${x(s.value + s.sd)}%`, y1: 11, y2: 11, stroke: s === ours ? colour : "var(--soft)", "stroke-width": 1.5 }));
  if (known(theirs)) figure.append(svg("circle", { cx: at(theirs), cy: 11, r: 4.5, fill: "var(--card)", stroke: "var(--ink)", "stroke-width": 1.6 }));
  if (known(ours)) figure.append(svg("circle", { cx: at(ours), cy: 11, r: 5, fill: colour }));
  return figure;
}

function mark(report, selected) {
  for (const node of report.findAll(".duel[data-id], tr[data-id]")) node.classList.toggle("selected", node.dataset.id === selected);
}
