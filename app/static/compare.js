/** Two sounds against each other: both run, one is heard. */

import { $ } from "./dom.js";

const sides = {};
let heard = "A";

/** Put a player on a side, "A" or "B"; once both are taken the bar appears. */
export async function choose(side, player) {
  if (sides[side]) mark(side, false);
  stop();
  sides[side] = player;
  mark(side, true);
  $(`side-${side.toLowerCase()}`).textContent = player.label;
  const both = Boolean(sides.A && sides.B);
  $("compare").hidden = !both;
  document.body.classList.toggle("comparing", both);
  if (both) hear("A");
}

const mark = (side, on) => sides[side].element.querySelector(`[aria-label="Compare as ${side}"]`).setAttribute("aria-pressed", String(on));
const sounds = () => Promise.all([sides.A.audio(), sides.B.audio()]);

async function play() {
  const [a, b] = await sounds();
  if (!a.paused || !b.paused) return stop();
  a.currentTime = b.currentTime = 0;
  await Promise.all([a.play(), b.play()]);
  $("compare-play").textContent = "Stop";
  a.onended = b.onended = () => { if (a.paused && b.paused) stop(); };
}

function stop() {
  for (const player of Object.values(sides)) player.sound?.pause();
  $("compare-play").textContent = "Play";
}

async function hear(side) {
  heard = side;
  $("compare-switch").textContent = side === "A" ? "Hear B" : "Hear A";
  for (const name of ["A", "B"]) $(`side-${name.toLowerCase()}`).parentElement.classList.toggle("heard", name === side);
  const [a, b] = await sounds();
  a.muted = side !== "A";
  b.muted = side !== "B";
}

function close() {
  stop();
  for (const side of Object.keys(sides)) {
    mark(side, false);
    if (sides[side].sound) sides[side].sound.muted = false;
    delete sides[side];
  }
  $("compare").hidden = true;
  document.body.classList.remove("comparing");
}

$("compare-play").addEventListener("click", play);
$("compare-switch").addEventListener("click", () => hear(heard === "A" ? "B" : "A"));
$("compare-close").addEventListener("click", close);
