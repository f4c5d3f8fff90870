// Tables that sort when a heading is pressed. Cells carry what they sort by in data-v; those without it stay last.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => {
    const text = row.cells[i].dataset.v;
    return text === undefined || text.trim() === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
  };
  heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, i), value(b, i)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return (up ? order : -order) || 0;
    });
    body.append(...rows);
  }));
}

// Says that a table goes on beyond its box, where it does.
function cued(box) {
  const cue = el("p", { class: "note cue" }, "The table is wider than the page: scroll it sideways →");
  box.before(cue);
  const look = () => { cue.hidden = box.scrollWidth <= box.clientWidth + 1; };
  new ResizeObserver(look).observe(box);
  look();
}

function filterable(report) {
  const field = report.find("[data-filter]"), rows = report.findAll("tr[data-id]"), said = report.find(".shown");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    said.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
  });
  for (const row of rows) row.querySelector(".pick").addEventListener("click", () => report.set({ selected: row.dataset.id }));
}
