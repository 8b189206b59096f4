/** One generation: where it stands, and what came of it. */

import * as api from "./api.js";
import { nameOf } from "./axis.js";
import { choose } from "./compare.js";
import { inWords } from "./character.js";
import { announce, copy, h } from "./dom.js";
import { COMPOSITIONS } from "./mixture.js";
import { Player, use } from "./player.js";
import { curl, python, recipeLink } from "./snippets.js";

/** Return what a request asks for in words. */
export function title(body) {
  if (body.video) return [body.video, body.prompt].filter(Boolean).join(" + ");
  if (body.timeline) return [...new Set(body.timeline.map(nameOf))].join(" + ");
  const name = (item) => (item.image ? "an image" : item.text);
  if (!body.prompts) return [body.prompt, body.image && "an image"].filter(Boolean).join(" + ");
  return body.prompts.map((item) => `${name(item)}${item.weight === 1 ? "" : ` ×${Number(item.weight.toFixed(2))}`}`).join(" + ");
}

const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;
const seconds = (s) => (s < 1 ? "less than a second" : `about ${Math.round(s)} s`);

/** Return where a generation stands in words. */
export function standing({ status, queue_position: before, eta_s: eta, progress, error }) {
  const wait = eta === null || eta === undefined ? "" : `, ${seconds(eta)}`;
  if (status === "queued") return `Waiting: ${before ? `${ordinal(before + 1)} in line` : "next in line"}${wait}`;
  if (status === "processing") return progress ? `Step ${progress.step} of ${progress.num_steps}` : "Started";
  return { succeeded: "Done", canceled: "Canceled", expired: "Too late: its deadline had passed" }[status] ?? `Failed: ${error?.detail ?? "no reason given"}`;
}

/** Return a line for each warning. */
export const notes = (warnings = []) => warnings.map(({ detail }) => h("p", { className: "note" }, detail));

export class Card {
  /** @param entry {id, title, body, parent}  @param actions {reuse(body), remove(card), vary(entry, n), extend(entry, n)} */
  constructor(entry, actions) {
    this.entry = entry;
    this.actions = actions;
    this.status = h("span", {}, "…");
    this.bar = h("progress", { "aria-label": "Steps done" });
    this.cancel = h("button", { type: "button", onclick: () => this.#cancel() }, "Cancel");
    this.state = h("div", { className: "state" }, this.status, this.cancel);
    this.notes = h("div", {});
    this.outputs = h("div", { className: "outputs" });
    this.failure = h("p", { className: "failure", hidden: true });
    this.tools = h("div", { className: "tools" });
    const heading = h("h2", {}, entry.title);
    this.element = h("article", { className: "card", "aria-label": entry.title }, heading, h("p", { className: "meta" }, this.#meta()), this.state, this.bar, this.failure, this.notes, this.outputs, this.tools);
    this.#showTools();
  }

  #meta() {
    const { composition, seed, duration_s, num_inference_steps, guidance_scale, attributes, loop } = this.entry.body;
    const how = composition ? `${COMPOSITIONS[composition]} · ` : "";
    const length = duration_s === undefined ? "" : ` · ${duration_s} s${loop ? ", a loop" : ""}`;
    return `${how}seed ${seed}${length} · ${num_inference_steps} steps · guidance ${guidance_scale}${inWords(attributes)}`;
  }

  /** Follow the generation to its end. */
  async follow() {
    try {
      for await (const generation of api.follow(this.entry.id)) this.show(generation);
    } catch (error) {
      this.lost(error);
    }
  }

  show(generation) {
    const words = standing(generation);
    if (generation.status !== this.shown) announce(`${this.entry.title}: ${words}`);
    this.shown = generation.status;
    this.status.textContent = words;
    this.notes.replaceChildren(...notes(generation.warnings));
    const ended = api.hasEnded(generation);
    this.cancel.hidden = ended;
    this.bar.hidden = ended;
    if (generation.progress) Object.assign(this.bar, { max: generation.progress.num_steps, value: generation.progress.step });
    if (!ended) return;
    this.state.hidden = generation.status === "succeeded";
    this.failure.hidden = generation.status !== "failed";
    this.failure.textContent = generation.error?.detail ?? "";
    if (generation.status === "succeeded" && !this.outputs.children.length) this.#showOutputs(generation.outputs);
  }

  #showOutputs(outputs) {
    const sounds = byIndex(outputs);
    const players = [...sounds.values()].map((files, n) => {
      const label = sounds.size > 1 ? `${this.entry.title}, variation ${n + 1}` : this.entry.title;
      return new Player(files, label, choose, this.#remakes(files[0], label), this.entry.body.timeline);
    });
    this.outputs.classList.toggle("timed", Boolean(this.entry.body.timeline));
    this.outputs.replaceChildren(...players.map((player) => player.element));
    use(players[0]);
    this.recipe = outputs[0].recipe;
    this.#showTools();
  }

  /** Return the buttons that make sounds of an output; a retrieved one has none. */
  #remakes({ index, clip }, label) {
    if (clip) return [];
    const remake = (name, says, action) => h("button", { type: "button", title: says, "aria-label": `${name} ${label}`, onclick: () => action(this.entry, index) }, name);
    return [
      remake("Vary", "Make a sound like this one", this.actions.vary),
      remake("Continue", "Make this sound 4 s longer", this.actions.extend),
    ];
  }

  #showTools() {
    const { body, parent } = this.entry;
    const button = (label, action) => h("button", { type: "button", onclick: (event) => action(event.currentTarget) }, label);
    const snippets = [button("Copy as curl", (b) => copy(b, curl(body))), button("Copy as Python", (b) => copy(b, python(body)))];
    this.tools.replaceChildren(
      button("Use these settings", () => this.actions.reuse(body)),
      ...(parent ? [] : snippets), // they would make another sound
      ...(this.recipe ? [button("Copy recipe link", (b) => copy(b, recipeLink(this.recipe)))] : []),
      button("Remove", () => this.actions.remove(this)),
    );
  }

  /** Say that the generation cannot be had any more. */
  lost(error) {
    this.cancel.hidden = this.bar.hidden = true;
    const gone = error.status === 404 || error.status === 410;
    this.status.textContent = gone ? "The service has kept this sound no longer. Its settings are still here." : error.message;
  }

  async #cancel() {
    this.cancel.disabled = true;
    this.status.textContent = "Canceling…";
    try {
      this.show(await api.cancel(this.entry.id));
    } catch (error) {
      if (error.code !== "already_ended") this.status.textContent = error.message;
    }
  }
}

function byIndex(outputs) {
  const groups = new Map();
  for (const output of outputs) groups.set(output.index, [...(groups.get(output.index) ?? []), output]);
  return groups;
}
