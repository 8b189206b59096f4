"""A prepared folder with wrong pairs that are known: the sounds of a share of the training clips exchanged among themselves.

Run: clipsynth swap PREPARED OUT [--share 0.2] [--seed 0]

Only the index is new; the shards are links to the old ones. `OUT/swapped.json` says which clip has whose sound; nothing in training reads it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from training.data.clips import load_clips

OF_SOUND = ("duration_s", "gain", "attributes")  # what an index's line says of the sound, beside the arrays
SOUND_ARRAYS = ("waveform", "mel")


def swap(prepared: Path, out: Path, *, share: float = 0.2, seed: int = 0) -> dict[str, str]:
    """Write `out` and return {key of a clip: key of the clip whose sound it has now}.

    Every clip of the share gets another's sound, of another video where that is possible. Statistics stay what they were: the sounds of the
    training clips are the same ones.

    Raises:
        ValueError: no prepared folder, `out` is not empty, or the share is under two clips or above 1.
    """
    index = load_clips(prepared, agreement=False).train.index
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    if not 2 <= round(share * len(index)) <= len(index):
        raise ValueError(
            f"a share of {share:g} of {len(index)} training clips is {round(share * len(index))}; need 2 or more, and a share up to 1"
        )
    givers = _exchange([line["video"] for line in index], round(share * len(index)), seed)
    changed = {index[i]["key"]: _with_sound_of(index[j], index[i]) for i, j in givers.items()}
    (out / "shards").mkdir(parents=True, exist_ok=True)
    for shard in (prepared / "shards").glob("*.tar"):
        os.symlink(shard.resolve(), out / "shards" / shard.name)
    shutil.copytree(prepared / "encoder", out / "encoder")
    shutil.copyfile(prepared / "statistics.safetensors", out / "statistics.safetensors")
    swapped = {index[i]["key"]: index[j]["key"] for i, j in givers.items()}
    (out / "swapped.json").write_text(
        json.dumps({"share": share, "seed": seed, "sound_of": swapped}, indent=2) + "\n"
    )
    with (prepared / "index.jsonl").open() as old, (out / "index.jsonl").open("w") as new:
        for text in old:
            line = json.loads(text)
            new.write(json.dumps(changed.get(line["key"], line)) + "\n")
    return swapped


def _exchange(videos: list[str], size: int, seed: int) -> dict[int, int]:
    """Return {place: place of the giver} for `size` of the clips, each giver once.

    The chosen are laid in a ring, video by video in random order, and each takes from the one half a ring away: another video's, unless one
    video has more than half of them.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(videos), generator=generator)[:size].tolist()
    names = sorted({videos[i] for i in chosen})
    rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
    ring = sorted(chosen, key=lambda i: (rank[videos[i]], i))
    return dict(zip(ring, ring[size // 2 :] + ring[: size // 2], strict=True))


def _with_sound_of(giver: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """Return `line` with all that is the sound's taken from `giver`."""
    shards = line.get("shards", {}) | {
        name: giver.get("shards", {}).get(name, giver["shard"]) for name in SOUND_ARRAYS
    }
    arrays = line["arrays"] | {name: giver["arrays"][name] for name in SOUND_ARRAYS}
    return line | {name: giver[name] for name in OF_SOUND} | {"arrays": arrays, "shards": shards}
