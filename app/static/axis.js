/** A time axis, and the bars of a timeline above a spectrogram. */

import { h } from "./dom.js";

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15];
const MAX_TICKS = 6;

export const percent = (s, total) => `${(100 * s) / total}%`;
export const nameOf = (item) => (item.text === undefined ? "an image" : item.text);

/** Return an axis from 0 to `total` seconds; screen readers hear the times of the items instead. */
export function axis(total) {
  const step = STEPS.find((size) => total / size <= MAX_TICKS) ?? total;
  const ticks = Array.from({ length: Math.floor(total / step + 1e-6) + 1 }, (_, n) => {
    const tick = h("span", { className: n * step > 0.93 * total ? "last" : "" }, Number((n * step).toFixed(1)) + (n ? "" : " s"));
    tick.style.left = percent(n * step, total);
    return tick;
  });
  return h("div", { className: "axis", "aria-hidden": "true" }, ...ticks);
}

/** Return the timeline of a sound as bars; items that do not overlap share a line. */
export function lanes(timeline, total) {
  if (!timeline) return [];
  const ends = [];
  const lines = [];
  for (const item of [...timeline].sort((a, b) => a.start_s - b.start_s)) {
    const free = ends.findIndex((end) => end <= item.start_s);
    const n = free < 0 ? ends.length : free;
    lines[n] ??= h("div", { className: "lane" });
    ends[n] = item.end_s;
    const bar = h("span", { title: nameOf(item) }, nameOf(item));
    bar.style.left = percent(item.start_s, total);
    bar.style.width = percent(item.end_s - item.start_s, total);
    lines[n].append(bar);
  }
  return [h("div", { className: "lanes", "aria-hidden": "true" }, ...lines, axis(total))];
}

/** Return a timeline in words. */
export const inTimes = (timeline) => (timeline ?? []).map((item) => `${nameOf(item)} from ${item.start_s} to ${item.end_s} s`).join("; ");
