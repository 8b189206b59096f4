"""Find the videos to prepare: all below a folder, or only those in the list of a data set."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
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


@dataclass(frozen=True)
class FoundVideos:
    """What a folder holds: videos by name, entries of the list without a video, and other files.

    `skipped` is {name: reason} of what is called a video but is no file, `ignored` {suffix: number of files}.
    """

    videos: list[Source]
    missing: list[str]
    skipped: dict[str, str]
    ignored: dict[str, int]


def find_sources(folder: Path, listing: Path | None = None) -> FoundVideos:
    """Return the videos of `folder`.

    Args:
        folder: videos at any depth. Names that start with a point are ignored.
        listing: the JSON of MUSIC ({"videos": {instrument: [YouTube id, …]}}, solo or duet; files `{id}.mp4`)
            or the CSV of VGGSound (YouTube id, start second, label, split; files `{id}_{start}.mp4` in
            seconds, or `{id}_{start}_{end}.mp4` in seconds or milliseconds). Labels are ignored. None: every
            video.

    Raises:
        PrepareError: there are no videos, or the list has neither form.
    """
    if not folder.is_dir():
        raise PrepareError(f"{folder} is not a folder; name the one with your videos")
    found, skipped, ignored = list[Source](), dict[str, str](), Counter[str]()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            ignored[path.suffix.lower()] += path.is_file()
        elif path.is_file():
            found.append(Source(name, path, name))
        elif not path.is_dir():
            skipped[name] = "not a file"
    if not found:
        others = ", ".join(f"{n} {suffix or 'without ending'}" for suffix, n in sorted(ignored.items()) if n)
        only = f", only other files ({others})" if others else ""
        raise PrepareError(
            f"{folder} holds no videos{only}; their names must end in .mp4, .mov, .webm or such"
        )
    missing: list[str] = []
    if listing is not None:
        found, missing = _listed(found, folder, listing)
    return FoundVideos(found, missing, skipped, {suffix: n for suffix, n in sorted(ignored.items()) if n})


def _listed(found: list[Source], folder: Path, listing: Path) -> tuple[list[Source], list[str]]:
    """Return the videos of a list, in its order of names, and the names that the folder lacks."""
    music = listing.suffix.lower() == ".json"
    wanted = _read_music(listing) if music else _read_vggsound(listing)
    chosen: dict[str, Source] = {}
    for source in found:
        stem = source.path.stem
        for name in (stem,) if music else _names_of_vggsound(stem):
            if name in wanted:
                chosen.setdefault(name, Source(source.name, source.path, wanted[name]))
                break
    missing = sorted(wanted.keys() - chosen.keys())
    if not chosen:
        raise PrepareError(
            f"{folder} holds none of the {len(wanted)} videos of {listing}, e.g. {missing[0]}.mp4"
        )
    return [chosen[name] for name in sorted(chosen)], missing


def _names_of_vggsound(stem: str) -> Iterator[str]:
    """Yield the entries `{id}_{start:06d}` that a file name may mean, the likeliest first."""
    if match := re.fullmatch(r"(.+)_(\d+)", stem):
        yield f"{match[1]}_{int(match[2]):06d}"
    if match := re.fullmatch(r"(.+)_(\d+)_(\d+)", stem):
        start, end = int(match[2]), int(match[3])
        yield f"{match[1]}_{start // 1000 if end - start >= 1000 else start:06d}"


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
    with path.open(newline="", encoding="utf-8-sig") as f:
        for line, row in enumerate(csv.reader(f), 1):
            start = row[1].strip() if len(row) > 1 else ""
            if re.fullmatch(r"\d+(\.\d*)?", start):
                wanted[f"{row[0].strip()}_{int(float(start)):06d}"] = row[0].strip()
            elif row and line > 1:
                raise PrepareError(f"{path}:{line}: expected a row of YouTube id, start second, …; got {row}")
    if not wanted:
        raise PrepareError(f"{path} has no row of YouTube id, start second, …")
    return wanted
