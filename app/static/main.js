/** The playground: composes a request, sends it, shows what comes of it. */

import * as api from "./api.js";
import { Card, notes, title } from "./card.js";
import { Character } from "./character.js";
import { $, announce, h } from "./dom.js";
import * as history from "./history.js";
import { Mixture } from "./mixture.js";
import { toggleLast } from "./player.js";
import { SettingsForm } from "./settings.js";
import { Timeline } from "./timeline.js";
import { VideoInput } from "./video.js";

const EXAMPLES = ["somebody plays the drums", "an acoustic guitar", "a dog barking", "a saxophone solo",
  "a helicopter, then a violin"];
const NO_MODEL_RETRY_MS = 2000;
const BOTH = "A video has a timeline of its own. Fold the timeline, or remove the video.";

const mixture = new Mixture(() => estimateSoon());
const video = new VideoInput(() => estimateSoon());
const timeline = new Timeline(() => estimateSoon());
const character = new Character();
const settings = new SettingsForm(() => estimateSoon(), (model) => character.offer(model.attributes));

// --- asking ---

function body() {
  if (timeline.isUsed && video.file) throw new Error(BOTH);
  if (timeline.isUsed) return { ...character.fields(), ...settings.fields(), ...timeline.fields() };
  if (video.file) return videoBody();
  const conditions = mixture.fields();
  return conditions && { ...conditions, ...character.fields(), ...settings.fields() };
}

/** Return the request for a video: words add to each scene, and its length is the video's. */
function videoBody() {
  const { prompt, ...others } = mixture.fields() ?? {};
  if (Object.keys(others).length) throw new Error("With a video there can be words in the box, and nothing mixed in.");
  const { duration_s: _, loop: _loop, ...fields } = settings.fields();
  return { ...(prompt && { prompt }), ...character.fields(), ...fields };
}

async function generate() {
  let wanted;
  try {
    wanted = body();
  } catch (error) {
    complain(error);
    return;
  }
  if (!wanted) {
    complain(new Error("Say what it should sound like, or add an image or a video."));
    $("prompt").focus();
    return;
  }
  const { file } = video;
  if (file) {
    const shown = { ...wanted, video: file.name };
    await start(title(shown), shown, () => api.createForVideo(wanted, file));
  } else {
    await start(title(wanted), wanted, () => api.create(wanted));
  }
  settings.used();
}

async function start(name, wanted, ask) {
  complain(null);
  $("generate").disabled = true;
  try {
    const generation = await ask();
    const { id, parent } = generation;
    const entry = { id, title: name, body: wanted ?? settled(generation), ...(parent && { parent }) };
    history.add(entry);
    const card = addCard(entry, "prepend");
    card.show(generation);
    card.follow();
  } catch (error) {
    complain(error);
  } finally {
    $("generate").disabled = false;
  }
}

/** Return the request that a generation was made of, for one which was not made here. */
function settled({ input }) {
  const { prompt, prompts, timeline: items, composition, attributes, method, rank, seed, duration_s, loop, num_inference_steps, guidance_scale, num_outputs, output_formats } = input;
  const texts = prompts?.filter((item) => item.text).map(({ text, weight }) => ({ text, weight }));
  const timed = items?.filter((item) => item.text).map(({ text, weight, start_s, end_s, attributes, fade_s }) => ({ text, weight, start_s, end_s, attributes, fade_s }));
  return {
    ...(prompt && { prompt }),
    ...(timed?.length && { timeline: timed }),
    ...(loop && { loop }),
    ...(texts?.length && { prompts: texts }),
    ...(composition !== "set" && { composition }),
    ...(method === "retrieval" && { method, rank }),
    attributes, seed, duration_s, num_inference_steps, guidance_scale, num_outputs, output_formats,
  };
}

function complain(error) {
  const isSaid = timeline.explain(error?.errors);
  $("problem").hidden = !error || isSaid;
  $("problem").textContent = error?.message ?? "";
  if (error?.status === 401) $("key-dialog").showModal();
}

// --- estimating ---

let estimateTimer;
function estimateSoon() {
  clearTimeout(estimateTimer);
  estimateTimer = setTimeout(async () => {
    if (!settings.model) return;
    try {
      const { p50_s: s, warnings } = await api.estimate({ ...settings.fields(), ...character.fields(), ...sketch() });
      $("estimate").textContent = s === null ? "" : s < 1 ? "less than a second" : `about ${Math.round(s)} s`;
      $("understood").replaceChildren(...notes(isWhole() ? warnings : []));
    } catch {
      $("estimate").textContent = ""; // a hint, no more
      $("understood").replaceChildren();
    }
  }, 400);
}

/** Return the request without its images and video: in their place something that costs as much. */
function sketch() {
  if (timeline.isUsed) {
    const { timeline: items, duration_s } = timeline.fields();
    return { timeline: items.map(({ image, ...item }) => ({ ...item, text: item.text ?? "any" })), duration_s };
  }
  const { prompt, prompts, composition } = mixture.fields() ?? {};
  if (prompt && !video.file) return { prompt };
  if (!prompts || video.file) return { prompt: "any", interpret: false };
  return { ...(composition && { composition }), prompts: prompts.map(({ text, weight }) => ({ text: text ?? "any", weight })) };
}

/** Whether the sketch is the request itself. */
function isWhole() {
  if (timeline.isUsed) return timeline.isOfWords;
  const { prompt, prompts } = mixture.fields() ?? {};
  return !video.file && Boolean(prompt || prompts?.every((item) => item.text));
}

// --- sounds ---

function addCard(entry, where) {
  const card = new Card(entry, { reuse, remove, vary, extend });
  $("cards")[where](card.element);
  $("empty").hidden = true;
  return card;
}

function reuse(earlier) {
  mixture.fill(earlier);
  timeline.fill(earlier);
  settings.fill(earlier);
  character.fill(earlier.attributes);
  (earlier.timeline ? $("timeline").querySelector("summary") : $("prompt")).focus();
  announce("The settings are filled in");
}

const vary = ({ id, title: name }, n) => start(`${name}, varied`, null, () => api.vary(id, n));
const extend = ({ id, title: name }, n) => start(`${name}, continued`, null, () => api.extend(id, n));

async function remove(card) {
  history.remove(card.entry.id);
  card.element.remove();
  $("empty").hidden = $("cards").children.length > 0;
  await api.forget(card.entry.id).catch(() => {}); // it may be gone already
}

async function recall() {
  for (const entry of history.read()) {
    const card = addCard(entry, "append");
    try {
      const generation = await api.get(entry.id);
      card.show(generation);
      if (!api.hasEnded(generation)) card.follow();
    } catch (error) {
      card.lost(error);
    }
  }
}

// --- images and videos ---

async function addFiles(files, images = timeline.isUsed ? timeline : mixture) {
  try {
    for (const file of files) {
      if (file.type.startsWith("image/")) await images.addImage(file);
      else if (file.type.startsWith("video/") || file.name.endsWith(".mkv")) video.set(file);
    }
    complain(null);
  } catch (error) {
    complain(error);
  }
}

function guarded(action) {
  return () => {
    try {
      action();
    } catch (error) {
      complain(error);
    }
  };
}

// --- the model ---

async function lookForModels() {
  try {
    const served = await api.models();
    const ready = served.filter((model) => model.status === "ready");
    $("served").textContent = ready.length ? `${ready.map((m) => m.name).join(", ")} · ready` : "No model is ready yet. What you ask for waits until one is.";
    settings.offer(served);
    estimateSoon();
    if (!ready.length) setTimeout(lookForModels, NO_MODEL_RETRY_MS);
  } catch (error) {
    $("served").textContent = error.message;
    if (error.status === 401) complain(error);
    else setTimeout(lookForModels, NO_MODEL_RETRY_MS);
  }
}

// --- wiring ---

$("composer").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("add-text").addEventListener("click", guarded(() => mixture.addText()));
$("add-negative").addEventListener("click", guarded(() => mixture.addText("", -1)));
$("add-sound").addEventListener("click", guarded(() => timeline.add().text.focus()));
$("add-picture").addEventListener("click", () => $("picture-file").click());
$("picture-file").addEventListener("change", async ({ target }) => { await addFiles(target.files, timeline); target.value = ""; });
$("add-image").addEventListener("click", () => $("file").click());
$("add-video").addEventListener("click", () => $("video-file").click());
$("video-file").addEventListener("change", async ({ target }) => { await addFiles(target.files); target.value = ""; });
$("file").addEventListener("change", async ({ target }) => { await addFiles(target.files); target.value = ""; });
$("examples").append(...EXAMPLES.map((text) => h("button", { type: "button", onclick: () => { $("prompt").value = text; mixture.onchange(); $("prompt").focus(); } }, text)));

document.addEventListener("dragover", (event) => { event.preventDefault(); $("composer").classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("composer").classList.remove("dropping"); });
document.addEventListener("drop", (event) => { event.preventDefault(); $("composer").classList.remove("dropping"); addFiles(event.dataTransfer.files); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); addFiles(event.clipboardData.files); } });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); if (!event.repeat) generate(); }
  const typing = event.target.closest("input, textarea, select, button, a, summary, dialog");
  if (event.key === " " && !typing && toggleLast()) event.preventDefault();
});

$("key-form").addEventListener("submit", () => { api.setKey($("key").value); $("key").value = ""; complain(null); lookForModels(); });

const preferred = matchMedia("(prefers-color-scheme: dark)");
const setTheme = (theme) => { document.documentElement.dataset.theme = theme; };
setTheme(localStorage.getItem("clipsynth.theme") ?? (preferred.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("clipsynth.theme", theme);
  setTheme(theme);
});

const shared = location.hash.match(/^#replay=(.+)$/)?.[1];
if (shared) {
  window.history.replaceState(null, "", location.pathname);
  $("shared").hidden = false;
  $("replay").addEventListener("click", async () => {
    await start("from a recipe", null, () => api.replay(shared));
    $("shared").hidden = true;
  });
}

lookForModels();
recall();
