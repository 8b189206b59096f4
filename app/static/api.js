/** The HTTP API as this page uses it. Files and events come by fetch, for neither <audio> nor EventSource can send a key. */

const KEY = "clipsynth.key";
const ENDED = new Set(["succeeded", "failed", "canceled", "expired"]);

/** What went wrong, in words for the user. */
export class Problem extends Error {
  constructor(status, code, detail, retryAfterS = null, errors = []) {
    super(detail);
    Object.assign(this, { status, code, retryAfterS, errors });
  }
}

export const hasEnded = (generation) => ENDED.has(generation.status);
export const setKey = (key) => sessionStorage.setItem(KEY, key);

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  const isForm = body instanceof FormData; // the browser adds its content type
  if (body !== undefined && !isForm) headers = { ...headers, "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: isForm ? body : body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "The service does not answer. Is it running?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** Fields of a request as the page calls them. */
const LABELS = {
  duration_s: "duration", num_inference_steps: "steps", guidance_scale: "guidance", num_outputs: "variations",
};

async function problemOf(response) {
  const told = await response.json().catch(() => ({}));
  const found = (told.errors ?? []).map((e) => ({ ...e, detail: e.detail.replace(/^Value error, /, "") }));
  const errors = found.map((e) => [e.pointer.split("/").slice(1).map((name) => LABELS[name] ?? name).join(" "), e.detail].filter(Boolean).join(": "));
  let words = errors.join("; ") || told.detail || `The service answered ${response.status}.`;
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  if (response.status === 429 && retryAfterS) words += `. Try again in ${retryAfterS} s`;
  return new Problem(response.status, told.code ?? "unknown", words.charAt(0).toUpperCase() + words.slice(1), retryAfterS, found);
}

const json = async (...request) => (await send(...request)).json();
const resource = (id) => `v1/generations/${id}`;

export const models = () => json("v1/models");
export const estimate = (body, signal) => json("v1/estimate", { method: "POST", body, signal });
const post = (path, body) => json(path, { method: "POST", body, headers: { "Idempotency-Key": crypto.randomUUID?.() ?? `${Math.random()}` } });
export const create = (body) => post("v1/generations", body);
export const vary = (id, output) => post(`${resource(id)}/variations`, { output, strength: 0.5 });
export const extend = (id, output) => post(`${resource(id)}/continuations`, { output, extend_s: 4 });
/** Create a generation for a video: fields of a request, and the file. */
export function createForVideo(fields, file) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (Array.isArray(value)) value.forEach((item) => form.append(name, item));
    else form.append(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  form.append("video", file);
  return create(form);
}
export const replay = (recipe) => json("v1/replay", { method: "POST", body: { recipe } });
export const get = (id) => json(resource(id));
export const cancel = (id) => json(`${resource(id)}/cancel`, { method: "POST" });
export const forget = (id) => send(resource(id), { method: "DELETE" });
const relative = (url) => url.slice(url.indexOf("/v1/") + 1); // the page knows its own prefix
export const file = async (url) => (await send(relative(url))).blob();
export const fileJson = (url) => json(relative(url));

/** Yield the generation at each of its changes until it has ended; an interrupted stream is taken up again. */
export async function* follow(id) {
  let lastId = null;
  for (let failures = 0; ; ) {
    try {
      const headers = { Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) };
      const response = await send(`${resource(id)}/events`, { headers });
      for await (const event of parse(response.body)) {
        failures = 0;
        lastId = event.id ?? lastId;
        if (event.type === "gone") throw new Problem(410, "gone", "The service has forgotten this generation.");
        const generation = JSON.parse(event.data);
        yield generation;
        if (hasEnded(generation)) return;
      }
    } catch (error) {
      const passing = error.status === undefined || error.status === 0 || error.status >= 500;
      if (!passing || ++failures > 20) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** failures, 8000)));
    }
  }
}

/** Yield {id, type, data} of a stream of server-sent events. */
async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const event = { type: "message", data: "" };
        for (const line of block.split("\n")) {
          const [, field, text] = line.match(/^(\w*): ?(.*)$/) ?? [];
          if (field === "event") event.type = text;
          else if (field === "id" || field === "data") event[field] = text;
        }
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
