/** What the sound is to be made of: the prompt box, and chips of words and images with weights. */

import { $, h } from "./dom.js";

const SIDE = 512; // px; the service makes images this small anyway
const MAX_ITEMS = 8;
export const MAX_IMAGES = 4;

/** How several things come together, in words; the first is what a request without it means. */
export const COMPOSITIONS = { set: "together", compose: "guided by each", mix: "separately, then mixed" };

/** Read an image, however large, into a small JPEG in base64. */
export async function readImage(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "That"} is not an image that this browser can read.`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.max(1, bitmap.width * scale), height: Math.max(1, bitmap.height * scale) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9).split(",")[1];
}

export const imageBlob = (base64) => new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/jpeg" });

export class Mixture {
  /** @param {() => void} onchange called when anything changes */
  constructor(onchange) {
    this.onchange = () => { $("composition-line").hidden = !this.#isSet(); onchange(); };
    this.items = []; // {text} or {image: base64, name}, each with weight
    this.prompt = $("prompt");
    this.prompt.addEventListener("input", this.onchange);
    this.composition = $("composition");
    this.composition.append(...Object.entries(COMPOSITIONS).map(([value, words]) => h("option", { value }, words)));
    this.composition.addEventListener("change", this.onchange);
  }

  addText(text = "", weight = 1) {
    this.#add({ text, weight });
  }

  async addImage(file) {
    if (this.items.filter((item) => item.image).length >= MAX_IMAGES) throw new Error(`At most ${MAX_IMAGES} images.`);
    this.#add({ image: await readImage(file), name: file.name || "image", weight: 1 });
  }

  #add(item) {
    if (this.items.length >= MAX_ITEMS - 1) throw new Error(`At most ${MAX_ITEMS} things can be mixed.`);
    this.items.push(item);
    const chip = this.#chip(item);
    $("mixture").append(chip);
    if (item.text === "") chip.querySelector("input").focus();
    this.onchange();
  }

  #chip(item) {
    const shown = h("output", {});
    const chip = h("li", { className: "chip" });
    const show = () => {
      shown.textContent = `${item.weight < 0 ? "−" : "×"}${Math.abs(item.weight).toFixed(1)}`;
      chip.classList.toggle("negative", item.weight < 0);
    };
    const content = item.image
      ? h("img", { src: URL.createObjectURL(imageBlob(item.image)), alt: `Image: ${item.name}` })
      : h("input", {
          type: "text", value: item.text, maxLength: 1000, placeholder: item.weight < 0 ? "what to leave out" : "piano",
          "aria-label": "Words", oninput: (event) => { item.text = event.target.value; this.onchange(); },
        });
    const weight = h("input", {
      type: "range", min: -2, max: 2, step: 0.1, value: item.weight, "aria-label": "Weight",
      oninput: (event) => { item.weight = Number(event.target.value); show(); this.onchange(); },
    });
    const remove = h("button", {
      type: "button", "aria-label": "Remove", onclick: () => {
        this.items.splice(this.items.indexOf(item), 1);
        if (item.image) URL.revokeObjectURL(content.src);
        chip.remove();
        this.prompt.focus();
        this.onchange();
      },
    }, "✕");
    chip.append(content, weight, shown, remove);
    show();
    return chip;
  }

  /** Whether two things or more are to be heard: only then is there a choice of how. */
  #isSet() {
    return this.#filled().filter((item) => item.weight > 0).length > 1;
  }

  /** Return the items that say something, the prompt as the first. */
  #filled() {
    const items = this.items.filter((item) => (item.image || item.text.trim()) && Math.abs(item.weight) >= 0.05);
    const prompt = this.prompt.value.trim();
    return prompt ? [{ text: prompt, weight: 1 }, ...items] : items;
  }

  /** Return the fields of a request: a lone text or image by itself, else a weighted set. Null if there is nothing. */
  fields() {
    const items = this.#filled();
    if (!items.some((item) => item.weight > 0)) return null;
    const [only] = items;
    if (items.length === 1 && only.weight === 1) return only.image ? { image: only.image } : { prompt: only.text };
    const prompts = items.map(({ text, image, weight }) => ({ ...(image ? { image } : { text: text.trim() }), weight }));
    const composition = this.composition.value;
    return { prompts, ...(this.#isSet() && composition !== "set" && { composition }) };
  }

  /** Show the fields of an earlier request. */
  fill({ prompt, image, prompts, composition }) {
    this.clear();
    this.composition.value = composition ?? "set";
    const items = prompts ?? [...(prompt ? [{ text: prompt, weight: 1 }] : []), ...(image ? [{ image, weight: 1 }] : [])];
    const first = items.findIndex((item) => item.text && item.weight === 1);
    this.prompt.value = items[first]?.text ?? "";
    items.forEach((item, n) => n !== first && this.#add({ name: "image", ...item }));
    this.onchange();
  }

  clear() {
    this.items = [];
    this.prompt.value = "";
    $("mixture").replaceChildren();
  }
}
