// Scales, ticks and markers: where things go, and nothing about what they mean.

function scale(low, high, from, to, log) {
  const f = log ? Math.log : (v) => v;
  const a = f(low), b = f(high);
  return (value) => from + ((f(value) - a) / (b - a || 1)) * (to - from);
}

// A domain with room around the values.
function domain(values, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const room = Math.max(1.06, (high / low) ** 0.06);
    return [low / room, high * room];
  }
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function ticks(low, high, count, log) {
  if (log) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of [1, 1.5, 2, 3, 5, 7]) found.push(m * 10 ** e);
    const inside = found.filter((v) => v >= low && v <= high);
    if (inside.length > 2) return inside;
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

const tidy = (value) => String(Number(value.toPrecision(6)));

const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
const prefixFor = (most) => PREFIXES.find(([factor]) => most >= factor) || [1, ""];

const SHAPES = ["circle", "square", "triangle", "diamond"];

// A marker around (x, y): filled, or hollow for other packages' rows.
function marker(shape, x, y, r, colour, hollow) {
  const style = { fill: hollow ? "var(--card)" : colour, stroke: hollow ? colour : "var(--card)", "stroke-width": hollow ? 2 : 1.2 };
  const paths = {
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x} ${y - 1.25 * r}l${1.2 * r} ${2.1 * r}h${-2.4 * r}z`,
    diamond: `M${x} ${y - 1.4 * r}l${1.4 * r} ${1.4 * r}l${-1.4 * r} ${1.4 * r}l${-1.4 * r} ${-1.4 * r}z`,
  };
  return shape in paths ? svg("path", { d: paths[shape], ...style }) : svg("circle", { cx: x, cy: y, r, ...style });
}

// Indices of the points that none beats in both. Signs are 1 where more is better, -1 where less is.
function front(points, xSign, ySign) {
  const order = points.map((_, i) => i).sort((a, b) => xSign * (points[b].px - points[a].px) || ySign * (points[b].py - points[a].py));
  const found = [];
  let best = -Infinity;
  for (const i of order) {
    if (ySign * points[i].py <= best) continue;
    best = ySign * points[i].py;
    found.push(i);
  }
  return found;
}

// Places for small texts that cover no marker and no other text.
class Labels {
  constructor(points, box) {
    this.taken = points.map((p) => [p.sx - 5, p.sy - 5, p.sx + 5, p.sy + 5]);
    this.box = box;
  }

  place(x, y, width) {
    for (const [dx, dy] of [[8, -6], [8, 14], [-8 - width, -6], [-8 - width, 14], [-width / 2, -10], [-width / 2, 20]]) {
      const rect = [x + dx, y + dy - 11, x + dx + width, y + dy + 2];
      const inside = rect[0] > this.box[0] && rect[1] > this.box[1] && rect[2] < this.box[2] && rect[3] < this.box[3];
      if (inside && !this.taken.some((t) => rect[0] < t[2] && rect[2] > t[0] && rect[1] < t[3] && rect[3] > t[1])) {
        this.taken.push(rect);
        return [x + dx, y + dy];
      }
    }
    return null;
  }
}
