"""Copy a prepared folder with the sounds of some training clips exchanged: wrong pairs that are known.

Only the index is new; the shards are links. `OUT/swapped.json` lists the exchanges; training never reads it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from training.data.clips import load_clips

SOUND_FIELDS = ("duration_s", "gain", "attributes")  # of a line of the index
SOUND_ARRAYS = ("waveform", "mel")


def exchange_sounds(prepared: Path, out: Path, *, share: float = 0.2, seed: int = 0) -> dict[str, str]:
    """Write `out` and return {key of a clip: key of the clip whose sound it has now}.

    Each clip of the share gets the sound of another clip, of another video if possible. The training clips
    have the same sounds as before, so the statistics do not change.

    Raises:
        ValueError: no prepared folder, `out` is not empty, or the share is under two clips or above 1.
    """
    index = load_clips(prepared, correspondence=False).train.index
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty")
    size = round(share * len(index))
    if not 2 <= size <= len(index):
        raise ValueError(
            f"a share of {share:g} of {len(index)} training clips is {size}; "
            "need 2 or more, and a share up to 1"
        )
    givers = _exchange([line["video"] for line in index], size, seed)
    changed = {index[i]["key"]: _with_sound_of(index[j], index[i]) for i, j in givers.items()}
    (out / "shards").mkdir(parents=True, exist_ok=True)
    for shard in (prepared / "shards").glob("*.tar"):
        os.symlink(shard.resolve(), out / "shards" / shard.name)
    shutil.copytree(prepared / "encoder", out / "encoder")
    shutil.copyfile(prepared / "statistics.safetensors", out / "statistics.safetensors")
    sound_of = {index[i]["key"]: index[j]["key"] for i, j in givers.items()}
    record = {"share": share, "seed": seed, "sound_of": sound_of}
    (out / "swapped.json").write_text(json.dumps(record, indent=2) + "\n")
    with (prepared / "index.jsonl").open() as old, (out / "index.jsonl").open("w") as new:
        for text in old:
            line = json.loads(text)
            new.write(json.dumps(changed.get(line["key"], line)) + "\n")
    return sound_of


def _exchange(videos: list[str], size: int, seed: int) -> dict[int, int]:
    """Return {clip number: number of the giver} for `size` of the clips; each gives once.

    The chosen clips form a ring, grouped by video in random order. Each takes the sound half a ring away:
    from another video, unless one video has more than half of the chosen clips.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(videos), generator=generator)[:size].tolist()
    names = sorted({videos[i] for i in chosen})
    rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
    ring = sorted(chosen, key=lambda i: (rank[videos[i]], i))
    return dict(zip(ring, ring[size // 2 :] + ring[: size // 2], strict=True))


def _with_sound_of(giver: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """Return `line` with the fields and arrays of the sound of `giver`."""
    shards = line.get("shards", {}) | {
        name: giver.get("shards", {}).get(name, giver["shard"]) for name in SOUND_ARRAYS
    }
    arrays = line["arrays"] | {name: giver["arrays"][name] for name in SOUND_ARRAYS}
    return line | {name: giver[name] for name in SOUND_FIELDS} | {"arrays": arrays, "shards": shards}
