/** What the sound is to be like: a slider for each attribute that the model takes. Each is left open until it is moved. */

import { $, h } from "./dom.js";

// Name: what little and much of it are called.
const ENDS = {
  loudness: ["quiet", "loud"],
  brightness: ["dull", "bright"],
  pitch: ["low", "high"],
  noisiness: ["tonal", "noisy"],
  density: ["sparse", "busy"],
};
const OPEN = "left open";

export class Character {
  constructor() {
    this.rows = []; // {name, slider, asked}
  }

  /** Offer what a model takes; what was asked for stays where it is taken too. */
  offer(names) {
    const asked = this.fields().attributes;
    this.rows = names.filter((name) => ENDS[name]).map((name) => this.#row(name));
    $("character-rows").replaceChildren(...this.rows.map((row) => row.element));
    $("character").hidden = !this.rows.length;
    this.fill(asked);
  }

  #row(name) {
    const [little, much] = ENDS[name];
    const label = name[0].toUpperCase() + name.slice(1);
    const row = { name, asked: null };
    row.slider = h("input", {
      type: "range", id: name, min: 0, max: 1, step: 0.05, value: 0.5, "aria-describedby": `${name}-ends`,
      oninput: () => set(row, Number(row.slider.value)),
    });
    row.open = h("button", { type: "button", "aria-label": `Leave ${name} open`, onclick: () => { set(row, null); row.slider.focus(); } }, "✕");
    const ends = h("span", { className: "ends", id: `${name}-ends` }, h("span", {}, little), h("span", { className: "unseen" }, " to "), h("span", {}, much));
    row.element = h("div", { className: "attribute" }, h("label", { htmlFor: name }, label), h("div", {}, row.slider, ends), row.open);
    set(row, null);
    return row;
  }

  /** Return the fields of a request: none where all is left open. */
  fields() {
    const asked = this.rows.filter((row) => row.asked !== null).map((row) => [row.name, row.asked]);
    return asked.length ? { attributes: Object.fromEntries(asked) } : {};
  }

  /** Show the attributes of an earlier request. */
  fill(attributes = {}) {
    for (const row of this.rows) set(row, attributes[row.name] ?? null);
    if (Object.keys(attributes).length) $("character").open = true;
  }
}

function set(row, asked) {
  const [little, much] = ENDS[row.name];
  row.asked = asked;
  row.slider.value = asked ?? 0.5;
  row.slider.classList.toggle("open", asked === null);
  const leaning = asked > 0.5 ? `, ${much}` : asked < 0.5 ? `, ${little}` : "";
  row.slider.setAttribute("aria-valuetext", asked === null ? OPEN : `${Math.round(100 * asked)} %${leaning}`);
  row.open.style.visibility = asked === null ? "hidden" : "visible";
}

/** Return attributes in words, for the line below a title. */
export const inWords = (attributes) => Object.entries(attributes ?? {}).map(([name, asked]) => ` · ${name} ${Math.round(100 * asked)} %`).join("");
