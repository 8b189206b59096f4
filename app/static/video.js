/** A video that gets a sound: its chip in the composer, and the player of the result. */

import * as api from "./api.js";
import { $, h, save } from "./dom.js";

/** The video of the next request, if there is one; words of the prompt add to each of its scenes. */
export class VideoInput {
  /** @param {() => void} onchange called when a video is chosen or removed */
  constructor(onchange) {
    this.onchange = onchange;
    this.file = null;
  }

  set(file) {
    this.clear();
    this.file = file;
    const preview = h("video", { src: URL.createObjectURL(file), muted: true, "aria-hidden": "true" });
    const remove = h("button", { type: "button", "aria-label": "Remove the video", onclick: () => this.clear() }, "✕");
    this.chip = h("p", { className: "chip video" }, preview, h("span", {}, file.name || "video"), remove);
    $("video-line").replaceChildren(this.chip);
    this.onchange();
  }

  clear() {
    if (!this.file) return;
    URL.revokeObjectURL(this.chip.querySelector("video").src);
    this.chip.remove();
    this.file = null;
    this.onchange();
  }
}

/** Return the part of a player that shows an output's video; none for a sound without one. */
export function videoResult({ video_url: url, filename }, label) {
  if (!url) return [];
  const name = filename.replace(/\.\w+$/, "");
  const place = h("div", { className: "video" });
  const load = async () => {
    const blob = await api.file(url);
    return { blob, name: `${name}.${blob.type === "video/webm" ? "webm" : "mp4"}` };
  };
  const show = h("button", { type: "button", onclick: async () => {
    show.disabled = true;
    const { blob } = await load();
    place.replaceChildren(h("video", { src: URL.createObjectURL(blob), controls: true, "aria-label": `Video of ${label}` }));
    show.remove();
  } }, "▶ Show the video");
  const download = h("button", { type: "button", onclick: async () => {
    const { blob, name } = await load();
    save(blob, name);
  } }, "Download the video");
  return [place, h("div", { className: "tools" }, show, download)];
}
