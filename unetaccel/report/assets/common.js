// Elements, and the state that the sections of one report share.

function fillIn(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (name, attributes, ...children) => fillIn(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) =>
  fillIn(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const WORDS = {
  row: { word: "ahead", mark: "▲" },
  level: { word: "level", mark: "≈" },
  plain: { word: "behind", mark: "▼" },
};

const SAID = { ahead: "row ahead", level: "level", behind: "plain run ahead" };

// Everything that one result's sections show. `set` changes the state and redraws those who listen to it.
class Report {
  constructor(article, data) {
    this.article = article;
    this.data = data;
    this.rows = new Map(data.rows.map((row) => [row.id, row]));
    this.families = new Map(data.families.map((family) => [family.name + family.kind, family]));
    this.listeners = [];
    const most = data.steps[0];
    const first = data.rows.find((row) => row.kind === "method" && row.steps === most) || data.rows[0];
    this.state = {
      metric: data.metric, axis: "speedup", steps: data.steps.length ? data.steps[0] : "all", solver: data.solvers[0], spread: true, ceilings: false, log: false,
      cost: "equal_macs", order: "file", peers: false, selected: first.id, beside: "plain", difference: false, hidden: new Set(),
    };
  }

  on(names, listener) {
    this.listeners.push([names, listener]);
    listener();
  }

  set(changes) {
    Object.assign(this.state, changes);
    for (const [names, listener] of this.listeners) if (names.some((name) => name in changes)) listener();
  }

  find(selector) {
    return this.article.querySelector(selector);
  }

  findAll(selector) {
    return [...this.article.querySelectorAll(selector)];
  }

  family(row) {
    return this.families.get(row.family + row.kind);
  }

  colour(family) {
    return family.colour === null ? "var(--ink)" : `var(--c${family.colour})`;
  }

  // The row's strip, as the table drew it.
  strip(id) {
    const line = this.findAll("tr[data-id]").find((tr) => tr.dataset.id === id);
    const found = line && line.querySelector(".strip");
    return found ? found.cloneNode(true) : null;
  }

  // "row label, 50 steps": labels alone need not tell rows apart.
  called(row) {
    const steps = row.kind === "plain" ? "" : `, ${row.steps} steps`;
    return row.label + steps + (this.data.solvers.length > 1 ? `, ${row.solver}` : "");
  }

  // The score beside rows of `steps`: a plain run's likeness is then that to the plain run of so many steps.
  scoreTo(row, metric, steps) {
    if (!row) return undefined;
    const base = this.data.rows.find((r) => r.kind === "plain" && r.solver === row.solver && r.steps === steps);
    if (row.kind !== "plain" || !base || this.data.metrics[metric].to !== "plain") return row.scores[metric];
    return row === base ? undefined : (row.scoresTo[base.id] || row.scores)[metric];
  }

  score(row, metric) {
    const found = row && row.scores[metric];
    const unit = this.data.metrics[metric].unit;
    return found ? found.text + (unit && found.value !== null ? ` ${unit}` : "") : "–";
  }
}
