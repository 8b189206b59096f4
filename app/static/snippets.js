/** A request as others would write it. */

const JSON_TEXTS = new Set(["prompts", "timeline", "attributes"]); // fields that a form carries as JSON
const formText = ([name, value]) => [name, JSON_TEXTS.has(name) ? JSON.stringify(value) : value];
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return the request with files as names of parts, [name of part, name of file] of each, and what comes back. */
function withParts({ video, ...body }) {
  const parts = video ? [["video", video]] : [];
  const part = (item) => {
    if (!item.image) return item;
    const name = `image${parts.length + 1}`;
    parts.push([name, `${name}.jpg`]);
    return { ...item, image: `part:${name}` };
  };
  const list = ["prompts", "timeline"].find((name) => body[name]);
  const named = list ? { ...body, [list]: body[list].map(part) } : part(body);
  const [accept, file] = video ? ["video/mp4, video/webm", /\.webm$/i.test(video) ? "sound.webm" : "sound.mp4"] : ["audio/wav", "sound.wav"];
  return { named: { ...named, output_formats: ["wav"], num_outputs: 1 }, parts, accept, file };
}

/** Return a curl command that saves the first sound, or the video with it. */
export function curl(body) {
  const { named, parts, accept, file } = withParts(body);
  const start = `curl ${new URL("v1/generations", document.baseURI)} -H 'prefer: wait=60' -H 'accept: ${accept}' -o ${file}`;
  if (!parts.length) return `${start} \\\n  -H 'content-type: application/json' -d ${quote(JSON.stringify(named))}`;
  const fields = Object.entries(named).map(formText).map(([name, text]) => `-F ${quote(`${name}=${text}`)}`);
  return [start, ...fields, ...parts.map(([name, from]) => `-F ${/^[\w.]+$/.test(from) ? `${name}=@${from}` : quote(`${name}=@${from}`)}`)].join(" \\\n  ");
}

/** Return a Python script that saves the first sound, or the video with it. */
export function python(body) {
  const { named, parts, accept, file } = withParts(body);
  const sent = parts.length
    ? `data=${literal(formFields(named))}, files={${parts.map(([name, from]) => `"${name}": open(${literal(from)}, "rb")`).join(", ")}}`
    : `json=${literal(named)}`;
  return `from pathlib import Path

import httpx

response = httpx.post(
    "${new URL("v1/generations", document.baseURI)}",
    ${sent},
    headers={"Prefer": "wait=60", "Accept": "${accept}"},
    timeout=70,
)
response.raise_for_status()
Path("${file}").write_bytes(response.content)
`;
}

const literal = (value) => JSON.stringify(value); // texts, numbers and lists: JSON is Python here
const formFields = (named) => Object.fromEntries(Object.entries(named).map(formText));

/** Return a link that offers to make a sound again. */
export const recipeLink = (token) => `${location.origin}${location.pathname}#replay=${token}`;
