/** One sound: spectrogram and waveform under one playhead, play, seek, loop, download. */

import * as api from "./api.js";
import { inTimes, lanes } from "./axis.js";
import { h, save } from "./dom.js";
import { nearness } from "./nearest.js";
import { videoResult } from "./video.js";

let playing = null; // one sound at a time
let lastUsed = null;

const clock = (s) => s.toFixed(1);

export class Player {
  /** @param files the entries of `outputs` for one index: the same sound in each format  @param remakes buttons for sounds made of this one  @param timeline the items that it was made of */
  constructor(files, label, oncompare, remakes = [], timeline = undefined) {
    [this.first] = this.files = files;
    this.duration = this.first.duration_s;
    this.label = label;
    this.image = h("img", { alt: `Spectrogram of ${label}` });
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.head = h("div", { className: "playhead" });
    this.view = h("div", {
      className: "view", tabIndex: 0, role: "slider", "aria-label": `Position in ${label}`,
      "aria-valuemin": "0", "aria-valuemax": String(this.duration),
      onpointerdown: (event) => this.#point(event), onpointermove: (event) => event.buttons && this.#point(event),
      onkeydown: (event) => this.#key(event),
    }, ...lanes(timeline, this.duration), this.image, this.canvas, this.head);
    if (timeline) this.view.setAttribute("aria-description", inTimes(timeline));
    this.button = h("button", { type: "button", onclick: () => this.toggle() }, "▶ Play");
    this.time = h("span", { className: "time" });
    this.loop = h("button", { type: "button", "aria-pressed": "false", onclick: () => this.#setLoop() }, "⟳ Loop");
    const sides = ["A", "B"].map((side) => h("button", { type: "button", "aria-label": `Compare as ${side}`, onclick: () => oncompare(side, this) }, side));
    const downloads = files.map((file) => h("button", { type: "button", onclick: () => this.#download(file) }, file.format.toUpperCase()));
    this.element = h("div", { className: "player" },
      this.view,
      h("div", { className: "tools" }, this.button, this.loop, ...sides, this.time),
      h("div", { className: "downloads" }, "Download", ...downloads),
      ...(remakes.length ? [h("div", { className: "tools" }, ...remakes)] : []),
      ...videoResult(this.first, label),
      ...nearness(this.first));
    this.position = 0;
    this.#show();
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      this.#draw().catch(() => {}); // gone with its generation, whose card says so
    }).observe(this.element);
  }

  async #draw() {
    this.image.src = URL.createObjectURL(await api.file(this.first.spectrogram_url));
    const peaks = await api.fileJson(this.first.peaks_url);
    const { canvas } = this;
    canvas.width = peaks.length;
    canvas.height = 96;
    const pen = canvas.getContext("2d");
    pen.fillStyle = getComputedStyle(this.element).getPropertyValue("--wave");
    const middle = canvas.height / 2;
    const top = Math.max(1, ...peaks.data.map(Math.abs));
    for (let x = 0; x < peaks.length; x++) {
      const low = (peaks.data[2 * x] / top) * middle, high = (peaks.data[2 * x + 1] / top) * middle;
      pen.fillRect(x, middle - high, 1, Math.max(1, high - low));
    }
  }

  /** Return the <audio>, loaded when first wanted. */
  async audio() {
    this.loading ??= (async () => {
      const audio = new Audio(URL.createObjectURL(await api.file(this.first.url)));
      audio.loop = this.loop.getAttribute("aria-pressed") === "true";
      audio.currentTime = this.position;
      for (const event of ["play", "pause", "ended", "seeked"]) audio.addEventListener(event, () => this.#show());
      this.sound = audio;
      return audio;
    })();
    return this.loading;
  }

  get isPlaying() {
    return Boolean(this.sound && !this.sound.paused);
  }

  async toggle() {
    lastUsed = this;
    const audio = await this.audio();
    if (this.isPlaying) return audio.pause();
    if (playing && playing !== this) playing.sound.pause();
    playing = this;
    await audio.play();
    this.#tick();
  }

  #tick() {
    this.#show();
    if (this.isPlaying) requestAnimationFrame(() => this.#tick());
  }

  #show() {
    if (this.sound) this.position = this.sound.currentTime;
    this.head.style.left = `${(100 * this.position) / this.duration}%`;
    this.time.textContent = `${clock(this.position)} / ${clock(this.duration)} s`;
    this.button.textContent = this.isPlaying ? "❚❚ Pause" : "▶ Play";
    this.view.setAttribute("aria-valuenow", clock(this.position));
    this.view.setAttribute("aria-valuetext", `${clock(this.position)} of ${clock(this.duration)} seconds`);
  }

  seek(position) {
    lastUsed = this;
    this.position = Math.min(Math.max(position, 0), this.duration);
    if (this.sound) this.sound.currentTime = this.position;
    this.#show();
  }

  #point(event) {
    const { left, width } = this.view.getBoundingClientRect();
    this.seek((this.duration * (event.clientX - left)) / width);
  }

  #key(event) {
    const to = { ArrowLeft: this.position - 0.2, ArrowRight: this.position + 0.2, Home: 0, End: this.duration }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.seek(to);
  }

  #setLoop() {
    const on = this.loop.getAttribute("aria-pressed") !== "true";
    this.loop.setAttribute("aria-pressed", String(on));
    if (this.sound) this.sound.loop = on;
  }

  async #download(file) {
    save(await api.file(file.url), file.filename);
  }
}

/** Play or pause the sound that was used last; return whether there is one. */
export function toggleLast() {
  const player = lastUsed?.element.isConnected ? lastUsed : null;
  player?.toggle();
  return player !== null;
}

/** Make a sound the one that the space bar plays. */
export function use(player) {
  lastUsed = player;
}
