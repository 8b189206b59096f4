"""Find the videos to prepare: all below a folder, or only those in the list of a data set."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from models.media.video import VIDEO_SUFFIXES


class PrepareError(ValueError):
    """The input of `prepare` cannot be used; the message gives the reason."""


@dataclass(frozen=True)
class Source:
    """A video file: `name` is its path below the folder; splits keep clips of one `origin` together."""

    name: str
    path: Path
    origin: str


def find_sources(folder: Path, listing: Path | None = None) -> tuple[list[Source], list[str]]:
    """Return the videos of `folder` sorted by name, and the entries of the list without a video.

    Args:
        folder: videos at any depth.
        listing: the JSON of MUSIC ({"videos": {instrument: [YouTube id, …]}}, solo or duet; files `{id}.mp4`)
            or the CSV of VGGSound (YouTube id, start second, label, split; files `{id}_{start:06d}.mp4`).
            Labels are ignored. None: every video.

    Raises:
        PrepareError: there are no videos, or the list has neither form.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise PrepareError(f"{folder} holds no videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    found = [Source(p.relative_to(folder).as_posix(), p, p.relative_to(folder).as_posix()) for p in files]
    if listing is None:
        return found, []
    wanted = _read_music(listing) if listing.suffix.lower() == ".json" else _read_vggsound(listing)
    by_stem = {source.path.stem: source for source in found}
    sources = [
        Source(by_stem[stem].name, by_stem[stem].path, origin)
        for stem, origin in sorted(wanted.items())
        if stem in by_stem
    ]
    missing = sorted(stem for stem in wanted if stem not in by_stem)
    if not sources:
        raise PrepareError(
            f"{folder} holds none of the {len(wanted)} videos of {listing}, e.g. {missing[0]}.mp4"
        )
    return sources, missing


def _read_music(path: Path) -> dict[str, str]:
    """Return {file stem: origin} of MUSIC's JSON."""
    try:
        by_instrument = json.loads(path.read_text())["videos"]
        wanted = {str(video): str(video) for videos in by_instrument.values() for video in videos}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise PrepareError(
            f'{path} is not of the form {{"videos": {{instrument: [id, …]}}}}: {error!r}'
        ) from error
    if not wanted:
        raise PrepareError(f"{path} names no video")
    return wanted


def _read_vggsound(path: Path) -> dict[str, str]:
    """Return {file stem: origin} of VGGSound's CSV."""
    wanted = {}
    with path.open(newline="") as f:
        for line, row in enumerate(csv.reader(f), 1):
            if len(row) < 2 or not row[1].strip().isdigit():
                raise PrepareError(f"{path}:{line}: expected a row of YouTube id, start second, …; got {row}")
            wanted[f"{row[0]}_{int(row[1]):06d}"] = row[0]
    if not wanted:
        raise PrepareError(f"{path} is empty")
    return wanted
