/** The bar of one item of the timeline: it is moved, and resized at its ends, by pointer and by keys. */

import { h } from "./dom.js";
import { nameOf, percent } from "./axis.js";

const MIN_ITEM_S = 0.1;
const STEP_S = 0.1, LONG_STEP_S = 1;

export const rounded = (s) => Math.round(s * 10) / 10;
const exact = (s) => Number(s.toFixed(3));
const within = (s, low, high) => exact(Math.min(Math.max(rounded(s), low), Math.max(low, high)));

// What is grabbed: what it is called, the time that it has, and the times of the item when it goes to `s`.
const GRIPS = {
  move: { says: "Position", at: (item) => item.start_s, to: (item, s, total) => {
    const length = item.end_s - item.start_s;
    const start_s = within(s, 0, total - length);
    return { start_s, end_s: exact(start_s + length) };
  } },
  start: { says: "Start", at: (item) => item.start_s, to: (item, s) => ({ start_s: within(s, 0, item.end_s - MIN_ITEM_S) }) },
  end: { says: "End", at: (item) => item.end_s, to: (item, s, total) => ({ end_s: within(s, item.start_s + MIN_ITEM_S, total) }) },
};

export class Bar {
  /** @param total returns the length of the timeline  @param onchange called when the item has other times */
  constructor(item, total, onchange) {
    Object.assign(this, { item, total, onchange });
    this.grips = Object.entries(GRIPS).map(([kind, grip]) => this.#grip(kind, grip));
    this.element = h("div", { className: "track" }, ...this.grips);
    this.show();
  }

  #grip(kind, grip) {
    return h("div", {
      className: `grip ${kind}`, tabIndex: 0, role: "slider", "aria-valuemin": "0",
      onkeydown: (event) => this.#key(event, grip), onpointerdown: (event) => this.#drag(event, grip),
    });
  }

  #set(grip, s) {
    Object.assign(this.item, grip.to(this.item, s, this.total()));
    this.show();
    this.onchange();
  }

  #key(event, grip) {
    const step = event.shiftKey ? LONG_STEP_S : STEP_S;
    const now = grip.at(this.item);
    const to = {
      ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
      PageDown: now - LONG_STEP_S, PageUp: now + LONG_STEP_S, Home: 0, End: this.total(),
    }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#set(grip, to);
  }

  #drag(event, grip) {
    if (event.button) return;
    const { currentTarget: held, clientX: from, pointerId } = event;
    const began = grip.at(this.item);
    const second = this.element.getBoundingClientRect().width / this.total();
    held.setPointerCapture(pointerId);
    held.onpointermove = (moved) => this.#set(grip, began + (moved.clientX - from) / second);
    held.onlostpointercapture = () => { held.onpointermove = null; };
  }

  /** Draw the item where it is now. */
  show() {
    const { item } = this;
    const total = this.total();
    const start = Math.min(Math.max(item.start_s, 0), total);
    const end = Math.min(Math.max(item.end_s, start), total);
    const [move, first, last] = this.grips;
    move.style.left = first.style.left = percent(start, total);
    move.style.width = percent(end - start, total);
    last.style.left = percent(end, total);
    move.textContent = nameOf(item);
    Object.values(GRIPS).forEach((grip, n) => {
      const s = grip.at(item);
      const name = nameOf(item) || "the new sound";
      const says = {
        label: `${grip.says} of ${name}`, valuemax: total, valuenow: s,
        valuetext: n ? `${s} s` : `from ${item.start_s} to ${item.end_s} s`,
      };
      for (const [key, value] of Object.entries(says)) this.grips[n].setAttribute(`aria-${key}`, value);
    });
  }
}
