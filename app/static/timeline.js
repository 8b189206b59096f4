/** The timeline of a request: rows of sounds, each with a bar. It counts while it is open and has rows. */

import { axis, nameOf } from "./axis.js";
import { Bar, rounded } from "./bar.js";
import { $, announce, h } from "./dom.js";
import { imageBlob, MAX_IMAGES, readImage } from "./mixture.js";

const MAX_ITEMS = 32;
const FIRST_LENGTH_S = 2;
// How strong an item is, and how it begins and ends: the field, its default, and a slider.
const SHAPE = [
  { field: "weight", says: "Weight", usual: 1, shown: (value) => `×${value}`, range: { min: 0.1, max: 5, step: 0.1 } },
  { field: "fade_s", says: "Fades", usual: 0.25, shown: (value) => `${value} s`, range: { min: 0, max: 5, step: 0.05 } },
];

export class Timeline {
  /** @param {() => void} onchange called when anything changes */
  constructor(onchange) {
    this.onchange = onchange;
    this.rows = []; // {item, bar, element, problem, times, shape}
    this.length = $("length");
    $("timeline").addEventListener("toggle", () => this.#changed());
    this.length.addEventListener("input", () => this.#changed());
  }

  /** Whether it is what is asked for. */
  get isUsed() {
    return $("timeline").open && this.rows.length > 0;
  }

  /** Whether every row is of words. */
  get isOfWords() {
    return this.rows.every(({ item }) => item.text?.trim());
  }

  /** Add a row, behind the last one as far as there is room. */
  add(content = { text: "" }) {
    if (this.rows.length >= MAX_ITEMS) throw new Error(`A timeline has at most ${MAX_ITEMS} sounds.`);
    const total = Number(this.length.value);
    const last = Math.max(0, ...this.rows.map(({ item }) => item.end_s));
    const start_s = rounded(last < total ? last : 0);
    return this.#row({ start_s, end_s: rounded(Math.min(total, start_s + FIRST_LENGTH_S)), ...content });
  }

  async addImage(file) {
    if (this.rows.filter(({ item }) => item.image).length >= MAX_IMAGES) throw new Error(`At most ${MAX_IMAGES} images.`);
    this.add({ image: await readImage(file) });
  }

  #row(item) {
    const row = { item };
    row.bar = new Bar(item, () => Number(this.length.value), () => this.#changed(row));
    row.text = item.image
      ? h("img", { src: URL.createObjectURL(imageBlob(item.image)), alt: "An image" })
      : h("input", {
          type: "text", value: item.text, maxLength: 1000, placeholder: "rain", "aria-label": "Sound",
          oninput: () => { item.text = row.text.value; this.#changed(row); },
        });
    row.times = ["start_s", "end_s"].map((name, n) => h("input", {
      type: "number", step: "any", inputMode: "decimal", title: "Seconds", oninput: ({ target }) => {
        if (target.value === "") return;
        item[name] = Number(target.value);
        this.length.value = Math.max(this.length.value, item[name]);
        this.#changed(row);
      },
      onchange: ({ target }) => { target.value = item[name]; },
    }));
    row.problem = h("p", { className: "failure", role: "alert", hidden: true });
    row.shape = SHAPE.map((own) => {
      const input = h("input", { type: "range", ...own.range, value: item[own.field] ?? own.usual, oninput: () => {
        item[own.field] = Number(input.value);
        this.#changed(row);
      } });
      return { ...own, input, output: h("output", {}) };
    });
    const remove = h("button", { type: "button", onclick: () => this.#remove(row) }, "✕");
    row.remove = remove;
    row.element = h("li", {},
      h("div", { className: "about" }, row.text, row.times[0], h("span", { "aria-hidden": "true" }, "–"), row.times[1], remove),
      row.bar.element,
      h("div", { className: "shape" }, ...row.shape.flatMap(({ says, input, output }) => [says, input, output])),
      row.problem);
    this.rows.push(row);
    $("timeline-rows").append(row.element);
    this.#changed(row);
    return row;
  }

  #remove(row) {
    const at = this.rows.indexOf(row);
    this.rows.splice(at, 1);
    if (row.item.image) URL.revokeObjectURL(row.text.src);
    row.element.remove();
    announce(`${nameOf(row.item) || "The sound"} is removed from the timeline`);
    (this.rows[Math.min(at, this.rows.length - 1)]?.remove ?? $("add-sound")).focus();
    this.#changed();
  }

  /** Show rows and axis as they are now; a row that was changed loses its problem. */
  #changed(row) {
    if (row) row.problem.hidden = true;
    const last = Math.max(...this.rows.map(({ item }) => item.end_s));
    if (this.length.value < last) this.length.value = last; // no bar is cut
    document.querySelector("output[for=length]").textContent = `${Number(this.length.value)} s`;
    $("timeline-axis").replaceChildren(axis(Number(this.length.value)));
    for (const { item, bar, times, shape, remove } of this.rows) {
      bar.show();
      const name = nameOf(item) || "the new sound";
      [["Start", item.start_s], ["End", item.end_s]].forEach(([says, s], n) => {
        times[n].setAttribute("aria-label", `${says} of ${name} in seconds`);
        if (document.activeElement !== times[n]) times[n].value = s;
      });
      for (const { field, says, usual, shown, input, output } of shape) {
        output.textContent = shown(item[field] ?? usual);
        input.setAttribute("aria-label", `${says} of ${name}`);
        input.setAttribute("aria-valuetext", output.textContent);
      }
      remove.setAttribute("aria-label", `Remove ${name}`);
    }
    $("timeline-body").hidden = !this.rows.length;
    for (const element of document.querySelectorAll(".untimed")) element.hidden = this.isUsed;
    $("timed").hidden = !this.isUsed;
    this.onchange();
  }

  /** Return the fields of a request. */
  fields() {
    const items = this.rows.map(({ item }) => ({ ...item }));
    return { timeline: items, duration_s: Math.max(Number(this.length.value), ...items.map((item) => item.end_s)) };
  }

  /** Say at each row what is wrong with it; return whether the rows say everything. */
  explain(errors = []) {
    const of = (n) => errors.filter(({ pointer }) => new RegExp(`^/timeline/${n}(/|$)`).test(pointer));
    const said = this.rows.map(({ problem }, n) => {
      const own = of(n);
      problem.hidden = !own.length;
      problem.textContent = own.map(({ pointer, detail }) => [...pointer.split("/").slice(3), detail].join(": ")).join("; ");
      return own.length;
    });
    return errors.length > 0 && said.reduce((a, b) => a + b, 0) === errors.length;
  }

  /** Show the timeline of an earlier request; without one, it is empty and folded. */
  fill({ timeline, duration_s }) {
    for (const { item, text } of this.rows) if (item.image) URL.revokeObjectURL(text.src);
    this.rows = [];
    $("timeline-rows").replaceChildren();
    $("timeline").open = Boolean(timeline);
    if (timeline && duration_s) this.length.value = duration_s;
    for (const item of timeline ?? []) this.#row({ ...item });
    this.#changed();
  }
}
