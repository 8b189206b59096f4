"use strict";

const form = document.getElementById("test");
const sound = document.getElementById("sound");
const play = document.getElementById("play");
const next = document.getElementById("next");
const status = document.getElementById("status");
const scales = [...form.querySelectorAll("fieldset")];
let item = null;
let saving = 0; // ratings that are being saved
let saved = Promise.resolve(); // resolves when the last of them is saved

for (const scale of scales) {
  const name = scale.dataset.scale;
  const [first, last] = scale.querySelectorAll(".end");
  for (let value = 1; value <= 5; value++) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name, value: String(value) });
    const end = { 1: first, 5: last }[value];
    if (end) input.ariaLabel = `${value}, ${end.textContent}`;
    label.append(input, String(value));
    scale.querySelector(".values").append(label);
  }
}

const chosen = (scale) => scale.querySelector("input:checked");
const updateNext = () => { next.disabled = scales[0].disabled || saving > 0 || !scales.every(chosen); };
const say = (text) => { status.textContent = text; };

async function request(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body ? { "content-type": "application/json" } : {},
    body: body && JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.status === 204 ? null : answer.json();
}

async function show() {
  const progress = await request("GET", "next");
  item = progress.item;
  document.getElementById("count").textContent =
    item ? `Sound ${progress.done + 1} of ${progress.total}` : `${progress.done} of ${progress.total} rated`;
  Object.assign(document.getElementById("progress"), { value: progress.done, max: progress.total });
  form.hidden = !item;
  document.getElementById("end").hidden = Boolean(item);
  if (!item) {
    sound.pause();
    document.getElementById("end").focus();
    return;
  }
  document.getElementById("query").textContent = item.query;
  sound.src = `items/${item.id}.wav`;
  for (const scale of scales) {
    scale.disabled = true;
    for (const input of scale.querySelectorAll("input")) {
      input.checked = item.ratings[scale.dataset.scale] === Number(input.value);
    }
  }
  next.disabled = true;
  play.focus();
}

function listen() {
  sound.currentTime = 0;
  sound.play().catch((error) => say(`Cannot play the sound: ${error.message}`));
}

function enableScales() {
  for (const scale of scales) scale.disabled = false;
  updateNext();
}

async function save(rated, scale, value) {
  let message = `${scale.dataset.scale} ${value}, saved`;
  try {
    await request("PUT", `items/${rated.id}/${scale.dataset.scale}`, { value });
  } catch (error) {
    message = `This rating could not be saved. Please rate again: ${error.message}`;
    if (item === rated) scale.querySelector(`input[value="${value}"]`).checked = false;
  }
  saving--;
  say(message);
  updateNext();
}

function rate(scale, value) {
  const rated = item;
  saving++;
  updateNext();
  // In order: of two ratings the last one must stay.
  saved = saved.then(() => save(rated, scale, value));
}

sound.addEventListener("playing", enableScales);
play.addEventListener("click", listen);

for (const scale of scales) {
  scale.addEventListener("change", (event) => rate(scale, Number(event.target.value)));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  say("");
  show().catch((error) => say(`Cannot load the next sound. Please reload the page: ${error.message}`));
});

document.addEventListener("keydown", (event) => {
  if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.toLowerCase() === "p") {
    event.preventDefault();
    listen();
  } else if (/^[1-5]$/.test(event.key) && !scales[0].disabled) {
    event.preventDefault();
    const at = document.activeElement.closest("fieldset") || scales.find((s) => !chosen(s)) || scales[0];
    const input = at.querySelector(`input[value="${event.key}"]`);
    input.checked = true;
    rate(at, Number(event.key));
    const after = scales[scales.indexOf(at) + 1];
    if (after) (chosen(after) || after.querySelector("input")).focus();
    else input.focus();
  } else if (event.key === "Enter" && event.target !== play && !next.disabled) {
    event.preventDefault();
    form.requestSubmit(next);
  }
});

show().catch((error) => say(`Cannot load the test: ${error.message}`));
