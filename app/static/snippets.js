/** A request as others would write it. */

const JSON_TEXTS = new Set(["prompts", "attributes"]); // fields that a form carries as JSON
const formText = ([name, value]) => [name, JSON_TEXTS.has(name) ? JSON.stringify(value) : value];
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return the request with images as names of parts, and those names. */
function withParts(body) {
  const parts = [];
  const part = (item) => {
    if (!item.image) return item;
    parts.push(`image${parts.length + 1}`);
    return { ...item, image: `part:${parts.at(-1)}` };
  };
  const named = body.prompts ? { ...body, prompts: body.prompts.map(part) } : part(body);
  return { named: { ...named, output_formats: ["wav"], num_outputs: 1 }, parts };
}

/** Return a curl command that saves the first sound. */
export function curl(body) {
  const { named, parts } = withParts(body);
  const start = `curl ${new URL("v1/generations", document.baseURI)} -H 'prefer: wait=60' -H 'accept: audio/wav' -o sound.wav`;
  if (!parts.length) return `${start} \\\n  -H 'content-type: application/json' -d ${quote(JSON.stringify(named))}`;
  const fields = Object.entries(named).map(formText).map(([name, text]) => `-F ${quote(`${name}=${text}`)}`);
  return [start, ...fields, ...parts.map((name) => `-F ${name}=@${name}.jpg`)].join(" \\\n  ");
}

/** Return a Python script that saves the first sound. */
export function python(body) {
  const { named, parts } = withParts(body);
  const sent = parts.length
    ? `data=${literal(formFields(named))}, files={${parts.map((name) => `"${name}": open("${name}.jpg", "rb")`).join(", ")}}`
    : `json=${literal(named)}`;
  return `from pathlib import Path

import httpx

response = httpx.post(
    "${new URL("v1/generations", document.baseURI)}",
    ${sent},
    headers={"Prefer": "wait=60", "Accept": "audio/wav"},
    timeout=70,
)
response.raise_for_status()
Path("sound.wav").write_bytes(response.content)
`;
}

const literal = (value) => JSON.stringify(value); // texts, numbers and lists: JSON is Python here
const formFields = (named) => Object.fromEntries(Object.entries(named).map(formText));

/** Return a link that offers to make a sound again. */
export const recipeLink = (token) => `${location.origin}${location.pathname}#replay=${token}`;
