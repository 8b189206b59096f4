"""Turn a folder of videos into shards of features, from frames and audio; texts only by `--captions`.

A video is the unit of work: a killed run continues with the videos that are not prepared. The shard of a
video follows from the hash of its content, so a folder that grew has the same bytes as one made in one go.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.networks.encoder import JointEncoder
from models.networks.load_encoder import load_encoder
from training.prepare import folder as files
from training.prepare.features import Stream, Task, VideoPreparer, encode_batches, file_state
from training.prepare.finish import STATISTICS, Filters, Finisher
from training.prepare.folder import PrepareOptions, VideoRecord
from training.prepare.process_pool import Died, run_in_processes, run_on_ray
from training.prepare.sources import PrepareError, Source, find_sources

BATCH = 64  # images per call on a device
FEW = 10  # videos that may go without a question


def is_dev(origin: str) -> bool:
    """Return whether a video belongs to the tenth for dev, by the hash of its name."""
    return hashlib.sha256(os.fsencode(origin)).digest()[0] < 26


def prepare(
    videos: Path,
    out: Path,
    encoder: JointEncoder,
    *,
    options: PrepareOptions | None = None,
    listing: Path | None = None,
    captions: Path | None = None,
    workers: int = 0,
    part: tuple[int, int] | None = None,
    stream: Stream | None = None,
    remove: bool = False,
    filters: Filters | None = None,
    device: str | None = None,
    executor: str = "local",
) -> Iterator[tuple[int, int]]:
    """Prepare `videos` into `out`, or what changed of them; yield (videos done, total) after each video.

    Args:
        listing: the list of MUSIC or VGGSound; the report names the videos that the folder lacks.
        captions: CSV with columns file, caption (several rows per file allowed), for models that train on
            text.
        workers: number of processes; 0 uses this one.
        part: (I, N), only every Nth video by the hash of its name, to merge later.
        stream: runs a generator in a child process with limits; None decodes without limits.
        remove: allow that most of the known videos are gone.
        executor: "local", or "ray" for all nodes of a cluster, which must see `videos` and `out`.
        device: computes the embeddings, with workers in batches of several videos; None: each worker's CPU.
        filters: choose clips for training; all are in the shards, so another run may choose others.

    Raises:
        PrepareError: no videos, none usable, or `out` was started with other options or another encoder.
    """
    options = options or PrepareOptions()
    if executor == "ray" and find_spec("ray") is None:
        raise PrepareError('--executor ray needs the extra "ray"')
    if executor == "ray" and device:
        raise PrepareError("--device works with --executor local; with ray use --part on each machine")
    if options.speech and find_spec("silero_vad") is None:
        raise PrepareError('to measure speech install silero-vad, the extra "speech"')
    found = find_sources(videos, listing)
    texts = _read_captions(captions) if captions else {}
    sources = [source for source in found.videos if part is None or _in_part(source.name, part)]
    with files.locked(out), _one_thread():
        files.claim(out, options, f"{part[0]}/{part[1]}" if part else None)
        files.keep_encoder(out, encoder.save_pretrained)
        finished = files.read_records(out / "videos.jsonl")
        gone = finished.keys() - {source.name for source in sources}
        if len(gone) > max(FEW, len(finished) / 2) and not remove:
            raise PrepareError(
                f"{len(gone)} of the {len(finished)} videos of {out} are gone from {videos}; "
                "use another folder, or --remove to drop them"
            )
        records = finished | files.read_records(files.journal(out))
        tasks = _tasks(sources, records, texts, files.prepared_ids(out))
        done = len(sources) - len(tasks)
        yield done, len(sources)
        text_mean = _text_mean([out], lambda: encoder)
        for record in _run(tasks, workers, out, options, encoder, stream, device, executor):
            records[record.video] = record
            files.append_record(out, record)
            done += 1
            yield done, len(sources)
        dev = {record.sha256: record.dev for record in finished.values()}
        current = {
            source.name: replace(
                records[source.name], dev=dev.get(records[source.name].sha256, is_dev(source.origin))
            )
            for source in sources
        }
        known = {"skipped": found.skipped, "missing": found.missing, "ignored": found.ignored}
        known |= {"removed": sorted(gone)}
        finisher = Finisher(out, [out], current, options, filters or Filters())
        finisher.finish(text_mean, known, may_be_empty=part is not None)


def merge(out: Path, parts: Sequence[Path], filters: Filters | None = None) -> None:
    """Join the folders of `prepare --part`; the result has the bytes of a folder made in one go.

    Raises:
        PrepareError: a part is missing, unfinished, or made with other options or another encoder.
    """
    options = _options_of(parts)
    if filters and filters.max_speech < 1 and not options.speech:
        raise PrepareError(f"speech was not measured in {parts[0]}; prepare the parts with --max-speech")
    records: dict[str, VideoRecord] = {}
    known: dict[str, Any] = {"skipped": {}, "missing": [], "ignored": {}, "removed": []}
    for part in parts:
        if not (part / "videos.jsonl").is_file() or files.journal(part).is_file():
            raise PrepareError(f"{part} is not prepared to its end; run its command again")
        if files.encoder_contents(part / "encoder") != files.encoder_contents(parts[0] / "encoder"):
            raise PrepareError(f"{part} was made with another encoder than {parts[0]}")
        for name, record in files.read_records(part / "videos.jsonl").items():
            if records.setdefault(name, record).sha256 != record.sha256:
                raise PrepareError(f"{name} of {part} is another video than in the parts before")
        report = json.loads((part / "report.json").read_text())
        known["skipped"] |= {k: v for k, v in report["skipped"].items() if k not in records}
        known |= {name: report[name] for name in ("missing", "ignored")}
    with files.locked(out), _one_thread():
        files.claim(out, options, None)
        files.keep_encoder(out, partial(shutil.copytree, parts[0] / "encoder"))
        finisher = Finisher(out, [out, *parts], records, options, filters or Filters())
        finisher.finish(_text_mean(parts, partial(load_encoder, parts[0] / "encoder")), known)


def _text_mean(folders: Sequence[Path], load: Callable[[], JointEncoder]) -> torch.Tensor:
    """Return the mean of an encoder's class anchors (D,) from a folder that has it, or compute it."""
    for folder in folders:
        # A folder without clips has no such file; a damaged one is written again.
        with contextlib.suppress(FileNotFoundError, SafetensorError):
            return load_file(folder / STATISTICS)["text_mean"]
    return load().class_anchors.mean(0).cpu()


def _options_of(parts: Sequence[Path]) -> PrepareOptions:
    """Return the options that all parts have.

    Raises:
        PrepareError: no prepared folder, other options, or a part I/N without its siblings.
    """
    found = [files.read_options(part) for part in parts]
    for part, (options, _) in zip(parts, found, strict=True):
        if options != found[0][0]:
            raise PrepareError(f"{part} was made with other options than {parts[0]}")
    names = {name for _, name in found if name}
    for number in {name.partition("/")[2] for name in names}:
        missing = [f"{i}/{number}" for i in range(1, int(number) + 1) if f"{i}/{number}" not in names]
        if missing:
            raise PrepareError(f"part {', '.join(missing)} is missing")
    return found[0][0]


def _run(
    tasks: list[Task],
    workers: int,
    out: Path,
    options: PrepareOptions,
    encoder: JointEncoder,
    stream: Stream | None,
    device: str | None,
    executor: str,
) -> Iterator[VideoRecord]:
    """Yield the record of each task as it ends."""
    encoder.to(device or "cpu")
    if workers == 0 and executor == "local":
        yield from map(VideoPreparer(out, options, encoder, stream), tasks)
        return
    answer = partial(_encode, encoder) if device else None
    arguments = out.absolute(), options, stream
    results = (
        run_on_ray(_make_preparer, arguments, tasks)
        if executor == "ray"
        else run_in_processes(_make_preparer, arguments, tasks, workers, answer)
    )
    for task, result in results:
        if isinstance(result, Died):
            result = VideoRecord(task.name, (), "", skipped=result.reason, retry=True)
        yield result


def _make_preparer(
    out: Path,
    options: PrepareOptions,
    stream: Stream | None,
    encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> VideoPreparer:
    torch.set_num_threads(1)
    return VideoPreparer(out, options, load_encoder(out / "encoder"), stream, encode)


def _encode(encoder: JointEncoder, pixels: list[np.ndarray]) -> list[np.ndarray]:
    """Return the embeddings of the windows of several processes."""
    embeds = encode_batches(encoder, np.concatenate(pixels), size=BATCH)
    return np.split(embeds, np.cumsum([len(rows) for rows in pixels])[:-1])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as each of several processes does: the bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_part(name: str, part: tuple[int, int]) -> bool:
    """Return whether a video belongs to part I of N, by the hash of its name."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[-4:], "big") % part[1] == part[0] - 1


def _tasks(
    sources: list[Source],
    records: Mapping[str, VideoRecord],
    texts: Mapping[str, tuple[str, ...]],
    ids: set[str],
) -> list[Task]:
    """Return the videos to prepare: new ones, changed ones, and those whose clips are not there."""
    by_size: dict[int, set[str]] = defaultdict(set)
    for record in records.values():
        if record.sha256 and record.skipped is None:
            by_size[record.state[0]].add(record.sha256)
    tasks = []
    state: tuple[int, ...]
    for source in sources:
        captions, old = texts.get(source.name, ()), records.get(source.name)
        try:
            state = file_state(source.path)
        except OSError:
            state = (-1,)
        if old and old.state == state and not old.retry:
            has_clips = old.id in ids and old.id == files.video_id(old.sha256, captions)
            if old.skipped or has_clips:
                continue
        alike = sorted(by_size.get(state[0], ()))
        known = tuple(digest for digest in alike if files.video_id(digest, captions) in ids)
        tasks.append(Task(source.name, str(source.path.absolute()), captions, known))
    return tasks


def _read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    texts: dict[str, tuple[str, ...]] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
        for row in csv.DictReader(f):
            if not row.get("file") or not row.get("caption"):
                raise PrepareError(f"{path} needs the columns file and caption in every row; got {row}")
            texts[row["file"]] = (*texts.get(row["file"], ()), row["caption"])
    return texts
