// Two runs of the same seed on top of each other, parted by a line that is dragged.

const lost = (data) => `${data.missing} pictures that the file names could not be read: they lie in a folder of the result's name beside it, which has to move along with it.`;

class Pictures {
  constructor(report) {
    this.report = report;
    this.section = report.find(".pictures");
    const shown = report.data.rows.filter((row) => report.data.pictures[row.id]);
    if (!shown.length) {
      this.section.hidden = !report.data.missing;
      if (report.data.missing) this.section.replaceChildren(el("h2", {}, "Look for yourself"), el("p", { class: "note" }, lost(report.data)));
      return;
    }
    this.section.hidden = false;
    this.slider = this.section.querySelector("[data-split]");
    this.tiles = this.section.querySelector(".tiles");
    this.slider.addEventListener("input", () => this.split(Number(this.slider.value)));
    this.tiles.addEventListener("pointerdown", (event) => this.drag(event));
    this.tiles.addEventListener("pointermove", (event) => event.buttons && this.drag(event));
    report.on(["selected", "beside", "difference"], () => this.draw());
  }

  // The plain run that the chosen one is laid over.
  left(row) {
    const { beside } = this.report.state;
    return this.report.rows.get(beside === "plain" ? row.plain : row.rivals[beside]);
  }

  draw() {
    const { report } = this, { state, data } = report;
    const row = report.rows.get(state.selected), left = this.left(row);
    const [a, b] = [left && data.pictures[left.id], data.pictures[row.id]];
    this.section.querySelector(".left").textContent = left ? left.label : "no such run in the file";
    this.section.querySelector(".right").textContent = report.called(row);
    this.tiles.classList.toggle("difference", state.difference);
    const names = b ? Object.keys(b) : [];
    this.tiles.replaceChildren(...names.map((name) => this.tile(name, a && a[name], b[name])));
    const notes = ["Drag across any picture, or move the slider. Same prompt and seed on both sides."];
    if (!b) notes.unshift("The file has no pictures of this row.");
    else if (!a || !names.some((name) => a[name])) notes.unshift("The file has no pictures of the run beside it.");
    if (data.missing) notes.push(lost(data));
    this.section.querySelector(".picturenote").textContent = notes.join(" ");
  }

  tile(name, left, right) {
    const [prompt, seed] = name.replace(/\.\w+$/, "").split("-");
    const caption = this.report.data.captions[prompt] || `prompt ${prompt}`;
    const words = seed === undefined ? name : `${caption}, seed ${seed}`;
    const image = (src, side) => el("img", { src, alt: `${words}: ${side}`, draggable: "false", onload: (event) => event.target.classList.toggle("small", event.target.naturalWidth < 160) });
    const images = left ? [image(left, "plain run"), image(right, "chosen row")] : [image(right, "chosen row")];
    return el("figure", {}, el("div", { class: "pair" }, ...images), el("figcaption", {}, words));
  }

  drag(event) {
    const pair = event.target.closest(".pair");
    if (!pair) return;
    const box = pair.getBoundingClientRect();
    const share = Math.round(Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width)));
    this.slider.value = share;
    this.split(share);
  }

  split(share) {
    this.tiles.style.setProperty("--split", `${share}%`);
  }
}
