/** Duration, steps, guidance, variations, seed and model. */

import { $, h } from "./dom.js";

const FORMATS = ["wav", "flac", "ogg", "mp3"];

export class SettingsForm {
  /** @param onchange called when anything changes  @param onmodel called with a model when it is chosen */
  constructor(onchange, onmodel) {
    this.onmodel = onmodel;
    for (const slider of document.querySelectorAll("#settings input[type=range]")) {
      slider.addEventListener("input", () => { show(slider); onchange(); });
    }
    for (const box of ["loop", "literal"]) $(box).addEventListener("change", onchange);
    $("model").addEventListener("change", () => { this.#defaults(); onchange(); });
    $("dice").addEventListener("click", () => this.roll());
    this.roll();
  }

  /** Take the models that are served; while these are the same, what was set stays. */
  offer(models) {
    this.models = [...models].sort((a, b) => (b.status === "ready") - (a.status === "ready"));
    const offered = JSON.stringify(models.map((m) => [m.name, m.version]));
    if (offered === this.offered) return;
    this.offered = offered;
    $("model").replaceChildren(...this.models.map((m) => h("option", { value: m.name }, m.name)));
    $("model").hidden = $("model-label").hidden = models.length < 2;
    this.#defaults();
  }

  get model() {
    return this.models?.find((m) => m.name === $("model").value);
  }

  #defaults() {
    const model = this.model;
    if (!model) return;
    Object.assign($("duration"), { min: model.min_duration_s, max: model.max_duration_s });
    set("duration", model.duration_s);
    Object.assign($("length"), { min: model.min_duration_s, max: model.max_duration_s });
    set("steps", model.num_inference_steps);
    set("guidance", model.guidance_scale);
    show($("count"));
    this.onmodel(model);
  }

  roll() {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  }

  /** Return the fields of a request. */
  fields() {
    return {
      ...(this.models?.length > 1 && { model: this.model.name }),
      duration_s: Number($("duration").value),
      num_inference_steps: Number($("steps").value),
      guidance_scale: Number($("guidance").value),
      num_outputs: Number($("count").value),
      seed: Math.trunc(Number($("seed").value)),
      output_formats: FORMATS,
      ...($("loop").checked && { loop: true }),
      ...($("literal").checked && { interpret: false }),
    };
  }

  /** Show the settings of an earlier request, and keep its seed. */
  fill(body) {
    if (body.model) {
      $("model").value = body.model;
      if (this.model) this.onmodel(this.model);
    }
    set("duration", body.duration_s);
    set("steps", body.num_inference_steps);
    set("guidance", body.guidance_scale);
    set("count", body.num_outputs);
    $("loop").checked = Boolean(body.loop);
    $("literal").checked = body.interpret === false;
    $("seed").value = body.seed;
    $("lock").checked = true;
    $("settings").open = true;
  }

  /** After a request: another seed, unless this one is to be kept. */
  used() {
    if (!$("lock").checked) this.roll();
  }
}

function set(id, value) {
  if (value === undefined || value === null) return;
  $(id).value = value;
  show($(id));
}

function show(slider) {
  const output = document.querySelector(`output[for=${slider.id}]`);
  output.textContent = `${Number(slider.value)}${output.dataset.unit ?? ""}`;
}
