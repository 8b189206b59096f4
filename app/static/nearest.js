/** What a sound has to do with the training clips, in words. */

import { h } from "./dom.js";

const named = ({ video, start_s, source, licence }) => `${video} at ${Number(start_s.toFixed(1))} s (${source}, ${licence})`;

/** Return lines for an entry of `outputs`; none where the service says nothing. */
export function nearness({ clip, nearest: [first] = [], is_copy: isCopy }) {
  if (clip) return [h("p", { className: "nearest" }, `A training clip, not generated: ${named(clip)}`)];
  if (!first) return [];
  const line = h("p", { className: "nearest" }, `Nearest training clip: ${named(first)}, distance ${first.distance.toFixed(2)}`);
  return isCopy ? [line, h("p", { className: "nearest copied" }, "So near that it counts as a copy: mind that clip's licence.")] : [line];
}
