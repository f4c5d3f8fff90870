// Quality against cost: curves, spreads, ceilings, the front, and what a point says.

// Rows of one curve have the same name; the plain runs of all lengths are one curve.
const curveOf = (row) => row.family + (row.kind === "plain" ? "" : ` ${row.steps} `) + row.kind;

class Chart {
  constructor(report) {
    this.report = report;
    this.host = report.find(".plot");
    this.tip = report.find(".tip");
    this.at = -1;
    report.on(["metric"], () => this.chooseScale());
    report.on(["metric", "axis", "steps", "solver", "spread", "ceilings", "log", "hidden", "selected"], () => this.draw());
    new ResizeObserver(() => this.host.clientWidth !== this.width && this.draw()).observe(this.host);
  }

  // A wide range of positive distances is drawn on a logarithmic scale until the reader says otherwise.
  chooseScale() {
    const values = this.report.data.rows.map((row) => (row.scores[this.report.state.metric] || {}).value).filter(Number.isFinite);
    const lower = (this.report.data.metrics[this.report.state.metric] || {}).better === "lower"; // dB are logarithms already
    const wide = lower && values.length > 1 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 4;
    this.report.set({ log: wide });
  }

  visible() {
    const { metric, axis, steps, solver, hidden } = this.report.state;
    const rows = this.report.data.rows.filter((row) => row.solver === solver);
    const beside = rows.filter((row) => row.kind !== "plain" && (steps === "all" || row.steps === steps));
    const least = Math.min(...beside.map((row) => (row.x.macs || { x: 0 }).x)); // plain runs cheaper than all rows tell nothing
    const near = new Set(beside.flatMap((row) => [row.plain, ...Object.values(row.rivals)]));
    const shown = (row) =>
      !hidden.has(row.family + row.kind) &&
      (steps === "all" || near.has(row.id) || (row.kind === "plain" ? row.steps <= steps && row.x.macs && row.x.macs.x >= least : row.steps === steps));
    this.left = [];
    return rows.filter(shown).flatMap((row) => {
      const place = row.x[axis], score = this.report.scoreTo(row, metric, steps);
      if (place && score && score.value !== null) return [{ row, place, score, px: place.x, py: score.value }];
      this.left.push(row);
      return [];
    });
  }

  draw() {
    const { state, data } = this.report;
    this.width = this.host.clientWidth;
    const narrow = this.width < 560, height = narrow ? 370 : 480;
    if (this.svg) this.svg.remove();
    this.points = state.metric ? this.visible() : [];
    this.note();
    if (!this.points.length) return;
    this.box = [narrow ? 46 : 62, 34, this.width - 16, height - 52];
    this.svg = svg("svg", {
      viewBox: `0 0 ${this.width} ${height}`, width: this.width, height, tabindex: 0, role: "application",
      "aria-label": `${data.metrics[state.metric].label} against ${data.axes[state.axis].label}: ${this.points.length} points. Arrow keys walk along them, Enter chooses one.`,
      onpointermove: (event) => this.near(event), onpointerleave: () => this.show(-1), onblur: () => this.show(-1),
      onclick: (event) => { this.near(event); this.choose(); }, onkeydown: (event) => this.key(event),
    });
    this.host.prepend(this.svg);
    this.frame(narrow);
    this.front();
    for (const curve of this.curves()) this.curve(curve);
    this.tags(narrow);
    this.over = this.svg.appendChild(svg("g"));
    const chosen = this.points.find((p) => p.row.id === state.selected);
    if (chosen) this.svg.appendChild(svg("circle", { class: "ring", cx: chosen.sx, cy: chosen.sy, r: 10 }));
  }

  // Scales, grid, ticks and the names of the axes.
  frame(narrow) {
    const { state, data } = this.report;
    const [left, top, right, bottom] = this.box, axis = data.axes[state.axis], metric = data.metrics[state.metric];
    const spread = (p) => (state.spread && p.score.sd ? [p.py - p.score.sd, p.py + p.score.sd] : [p.py]);
    let ys = this.points.flatMap(spread);
    const log = state.log && Math.min(...this.points.map((p) => p.py)) > 0;
    if (log) ys = ys.filter((y) => y > 0);
    // Spreads of time may leave the frame: one noisy row would push all others together.
    const xs = this.points.flatMap((p) => [p.px, ...(state.ceilings && p.place.limit ? [p.place.limit] : [])]);
    const far = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 5;
    const [x0, x1] = domain(xs, far), [y0, y1] = domain(ys, log);
    this.x = scale(x0, x1, left, right, far);
    this.y = scale(y0, y1, bottom, top, log);
    this.floor = log ? y0 : -Infinity;
    this.inside = (x) => Math.max(x0, Math.min(x1, x));
    for (const p of this.points) [p.sx, p.sy] = [this.x(p.px), this.y(p.py)];
    const [factor, prefix] = state.axis === "macs" ? prefixFor(x1) : [1, ""];
    const suffix = state.axis === "speedup" ? "x" : state.axis === "seconds" ? " s" : "";
    for (const v of ticks(x0, x1, narrow ? 4 : 8, far)) this.line(this.x(v), top, this.x(v), bottom, [this.x(v), bottom + 19, "middle", tidy(v / factor) + suffix]);
    for (const v of ticks(y0, y1, 6, log)) this.line(left, this.y(v), right, this.y(v), [left - 8, this.y(v) + 4, "end", tidy(v)]);
    const unit = prefix ? ` (${prefix})` : "";
    this.text((left + right) / 2, bottom + 43, "middle", axis.label + unit + (axis.sign > 0 ? " →" : ""), "axis");
    const better = { lower: "↓ lower is better", higher: "↑ higher is better" }[metric.better] || "";
    const label = metric.label + (metric.unit ? ` (${metric.unit})` : "");
    this.text(narrow ? 4 : 8, 17, "start", narrow && label.length > 28 ? label.replace(/ \(.*?\)/, "") : label, "axis");
    this.text(right, 17, "end", narrow ? better.replace(" is better", "") : better, "better");
  }

  line(x1, y1, x2, y2, label) {
    this.svg.appendChild(svg("line", { class: "grid", x1, y1, x2, y2 }));
    this.text(...label);
  }

  text(x, y, anchor, words, kind) {
    this.svg.appendChild(svg("text", { x, y, "text-anchor": anchor, class: kind || "tick" }, words));
  }

  // A staircase: between two points of the front, the worse one's quality is what its cost buys.
  front() {
    const { state, data } = this.report, better = data.metrics[state.metric].better;
    this.best = new Set();
    if (!better) return;
    const points = this.points.filter((p) => !(p.row.edited && data.metrics[state.metric].to === "plain"));
    const found = front(points, data.axes[state.axis].sign, better === "higher" ? 1 : -1).map((i) => points[i]);
    this.best = new Set(found);
    const steps = found.map((p, i) => (i ? `H${p.sx}V${p.sy}` : `M${p.sx} ${p.sy}`));
    this.svg.appendChild(svg("path", { class: "front", d: steps.join("") }));
  }

  curves() {
    const found = new Map();
    for (const p of this.points) {
      const name = curveOf(p.row);
      found.set(name, [...(found.get(name) || []), p]);
    }
    return [...found.values()].map((points) => points.sort((a, b) => a.px - b.px)).sort((a, b) => (a[0].row.kind === "plain") - (b[0].row.kind === "plain"));
  }

  curve(points) {
    const { state, data } = this.report, { row } = points[0];
    const colour = this.report.colour(this.report.family(row)), peer = row.kind === "peer";
    const shape = row.kind === "plain" ? "circle" : SHAPES[Math.max(0, data.steps.indexOf(row.steps)) % SHAPES.length];
    const group = this.svg.appendChild(svg("g", { "data-curve": curveOf(row) }));
    const d = points.map((p, i) => `${i ? "L" : "M"}${p.sx} ${p.sy}`).join("");
    group.append(svg("path", { class: "curve", d, stroke: colour, "stroke-dasharray": peer ? "5 4" : null }));
    for (const p of points) {
      if (state.spread) this.spread(group, p, colour);
      if (state.ceilings) this.limit(group, p, colour);
      group.append(marker(shape, p.sx, p.sy, row.kind === "plain" ? 3.5 : peer ? 6.5 : 5, colour, peer));
    }
  }

  spread(group, p, colour) {
    const across = { class: "spread", stroke: colour, x1: this.x(this.inside(p.place.low)), x2: this.x(this.inside(p.place.high)), y1: p.sy, y2: p.sy };
    group.append(svg("line", across));
    if (!p.score.sd) return;
    const [low, high] = [Math.max(this.floor, p.py - p.score.sd), p.py + p.score.sd];
    group.append(svg("line", { class: "spread", stroke: colour, x1: p.sx, x2: p.sx, y1: this.y(low), y2: this.y(high) }));
  }

  // From the point to what its MACs alone would allow.
  limit(group, p, colour) {
    if (!p.place.limit) return;
    const x = this.x(p.place.limit);
    group.append(
      svg("line", { class: "limit", stroke: colour, "stroke-dasharray": "2 3", x1: p.sx, x2: x, y1: p.sy, y2: p.sy }),
      svg("line", { class: "limit", stroke: colour, x1: x, x2: x, y1: p.sy - 6, y2: p.sy + 6 }),
    );
  }

  tags(narrow) {
    const labels = new Labels(this.points, this.box);
    const rank = (p) => (this.best.has(p) ? 0 : p.row.kind === "method" ? 1 : 2);
    for (const p of [...this.points].sort((a, b) => rank(a) - rank(b))) {
      if (!p.row.tag || p.row.kind === "peer" || p.row.tag.length > 6 || (narrow && rank(p) > 0)) continue;
      const at = labels.place(p.sx, p.sy, 7 * p.row.tag.length);
      if (!at) continue;
      const fill = this.report.colour(this.report.family(p.row));
      this.svg.appendChild(svg("text", { class: "tag", "data-curve": curveOf(p.row), x: at[0], y: at[1], style: `fill:${fill}` }, p.row.tag));
    }
  }

  note() {
    const { data, state } = this.report, parts = [];
    if (state.metric && this.points.length) parts.push(`Bars are sd over seeds and the 20th to 80th percentile of time. The yellow staircase is the Pareto front of what is shown.`);
    if (state.metric && data.metrics[state.metric].to === "plain" && this.points.some((p) => p.row.edited)) parts.push("How far an edit of skips moves the pictures does not tell whether they are better: such rows are not on the front.");
    if (data.moving) parts.push(`Numbers at points: ${data.moving}; at the plain curve: steps.`);
    if (state.ceilings) parts.push(state.axis === "macs" ? "MACs have no ceiling." : "Dotted lines lead to the ceiling that the MACs set.");
    if (this.left && this.left.length) parts.push(`Not drawn, for want of a number: ${this.left.map((row) => this.report.called(row)).slice(0, 3).join("; ")}${this.left.length > 3 ? ` and ${this.left.length - 3} more` : ""}.`);
    this.report.find(".plotnote").textContent = parts.join(" ");
  }

  near(event) {
    const box = this.svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = 26;
    this.points.forEach((p, i) => {
      const far = Math.hypot(p.sx - x, p.sy - y);
      if (far < least) [best, least] = [i, far];
    });
    this.show(best);
  }

  key(event) {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (event.key === "Enter" || event.key === " ") this.choose();
    else if (event.key === "Escape") this.show(-1);
    else if (event.key in moves) {
      const order = this.points.map((_, i) => i).sort((a, b) => this.points[a].px - this.points[b].px);
      const next = this.at < 0 ? 0 : order.indexOf(this.at) + moves[event.key];
      this.show(order[(next + order.length) % order.length]);
    } else return;
    event.preventDefault();
  }

  choose() {
    if (this.at < 0) return;
    const at = this.at;
    this.report.set({ selected: this.points[at].row.id });
    this.svg.focus({ preventScroll: true });
    this.show(at);
  }

  // The tip beside point i; -1 hides it.
  show(i) {
    this.at = i;
    this.tip.hidden = i < 0;
    for (const group of this.svg.querySelectorAll("[data-curve]")) group.classList.remove("dim");
    this.over.replaceChildren();
    if (i < 0) return;
    const p = this.points[i], mine = curveOf(p.row);
    for (const group of this.svg.querySelectorAll("[data-curve]")) group.classList.toggle("dim", group.dataset.curve !== mine && !group.dataset.curve.endsWith("plain"));
    this.over.append(svg("circle", { class: "ring", cx: p.sx, cy: p.sy, r: 8 }));
    this.tip.replaceChildren(...describe(this.report, p.row, [this.report.state.metric], BRIEF));
    const wide = this.tip.offsetWidth, high = this.tip.offsetHeight;
    this.tip.style.left = `${Math.max(0, Math.min(this.width - wide, p.sx + (p.sx + 16 + wide > this.width ? -wide - 16 : 16)))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(this.svg.clientHeight - high, p.sy - high / 2))}px`;
  }
}

const BRIEF = /^(time|speedup|ceiling|MACs)/;

// What is known of a row, with its score and its rival's for each of the metrics; `only` picks among the facts.
function describe(report, row, metrics, only = /./) {
  const pair = (name, ...content) => el("div", {}, el("dt", {}, name), el("dd", {}, ...content));
  const scores = metrics.filter((metric) => row.scores[metric]).map((metric) => {
    const against = row.scores[metric].verdicts.equal_macs;
    return pair(report.data.metrics[metric].label, report.score(row, metric), against ? beside(report, metric, against) : null);
  });
  return [el("b", {}, report.called(row)), el("dl", { class: "pairs" }, ...scores, ...row.facts.filter(([name]) => only.test(name)).map(([name, text]) => pair(name, text)))];
}

function beside(report, metric, against) {
  const rival = report.rows.get(against.rival), { word, mark } = WORDS[against.ahead];
  return el("small", {}, `${rival.label}, equal MACs: ${report.score(rival, metric)} `, el("span", { class: word }, `${mark} ${SAID[word]}`));
}
