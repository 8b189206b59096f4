"""From a video to the timeline of its scenes, and back to a video with a sound."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from clipsynth.errors import VideoUndecodable
from clipsynth.limited_child import Limits
from clipsynth.schemas.prompts import MAX_ITEMS, StoredItem, StoredVideo
from clipsynth.services.limited_process import ChildError, run_limited
from clipsynth.storage import Scratch, Storage, result_video_key, scene_key, video_key
from clipsynth.video_file import add_sound, open_video, video_stream
from models.media.images import display_matrix, upright_image

# Images a second that the encoder sees.
SAMPLES_PER_S = 2.0
# CPU seconds of full decoding; then only images that stand alone are decoded.
DECODING_CPU_S = 60.0
SMALL = 32, 18
LIMITS = Limits(cpu_s=120, wall_s=180, memory_bytes=2_000_000_000, output_bytes=100_000_000)
# Cosine distance between the images of two scenes; measured in docs/decisions/worker.md.
CUT = 0.15
# A shorter scene belongs to one of its neighbours.
MIN_SCENE_S = 1.0
FADE_S = 0.1
Embed = Callable[[Sequence[Image.Image]], np.ndarray]


@dataclass(frozen=True)
class SampledVideo:
    """Images of a video as PNG at `times_s`, and how much each image differs from the one before.

    `changes` (N, 2) has for each decoded image its time in seconds and the mean difference of its colours.
    """

    times_s: list[float]
    images: list[bytes]
    changes: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Samples `first` to `last` of a video, shown from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    first: int
    last: int


def sample_video(path: str) -> SampledVideo:
    """Decode a file of `copy_video`; runs in a limited child process."""
    begun_s = time.process_time()
    times_s: list[float] = []
    images: list[bytes] = []
    changes: list[tuple[float, float]] = []
    before: np.ndarray | None = None
    matrix: list[int] | None = None
    to_small, to_rgb = VideoReformatter(), VideoReformatter()
    with open(path, "rb") as file, open_video(file) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 2
        for packet in container.demux(stream):
            if time.process_time() - begun_s > DECODING_CPU_S:
                stream.codec_context.skip_frame = "NONKEY"
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                shown_s = frame.time or 0.0
                resized = to_small.reformat(frame, *SMALL, format="rgb24", threads=1)
                small = resized.to_ndarray().astype(np.float32)
                if before is not None:
                    changes.append((shown_s, float(np.abs(small - before).mean())))
                before = small
                if not times_s or shown_s >= times_s[-1] + 1 / SAMPLES_PER_S - 1e-3:
                    times_s.append(shown_s)
                    matrix = display_matrix(frame) if matrix is None else matrix
                    image = upright_image(frame, stream.sample_aspect_ratio, matrix, to_rgb)
                    images.append(_png(image, level=1))
    return SampledVideo(times_s, images, np.array(changes, np.float32).reshape(-1, 2))


def _png(image: Image.Image, *, level: int = 6) -> bytes:
    """Encode an image; by default with the bytes that the API stores for it, so that recipes agree."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=level)
    return file.getvalue()


def find_scenes(
    sampled: SampledVideo, embeddings: np.ndarray, seconds: float, *, most: int = MAX_ITEMS
) -> list[Scene]:
    """Cut a video where its images change their meaning.

    A cut lies between two samples if the second one is far from the first one or from the scene so far. It is
    put where the pixels between them change most.

    Args:
        embeddings: (N, D) of unit norm, one per sample.
        most: number of scenes at most; the weakest cuts are left out.
    """
    cuts: dict[int, float] = {}
    start = 0
    for n in range(1, len(embeddings)):
        scene = embeddings[start:n].mean(0)
        cosines = embeddings[n] @ embeddings[n - 1], embeddings[n] @ scene / np.linalg.norm(scene)
        if (distance := 1 - float(min(cosines))) > CUT:
            cuts[n], start = distance, n
    while len(cuts) >= most:
        del cuts[min(cuts, key=lambda n: cuts[n])]
    places = {0: 0.0, **{n: _cut_s(sampled, n) for n in sorted(cuts)}, len(embeddings): seconds}
    ends = sorted(places)
    scenes = [Scene(places[a], places[b], a, b - 1) for a, b in pairwise(ends)]
    return _without_short(scenes, cuts)


def _cut_s(sampled: SampledVideo, n: int) -> float:
    """Return the time between samples n - 1 and n at which the pixels change most."""
    times_s, change = sampled.changes.T
    between = (times_s > sampled.times_s[n - 1]) & (times_s <= sampled.times_s[n])
    return float(times_s[between][change[between].argmax()]) if between.any() else sampled.times_s[n]


def _without_short(scenes: list[Scene], cuts: dict[int, float]) -> list[Scene]:
    """Join each scene below `MIN_SCENE_S` with the neighbour behind the weaker cut."""
    while len(scenes) > 1:
        shortest = min(range(len(scenes)), key=lambda n: scenes[n].end_s - scenes[n].start_s)
        scene = scenes[shortest]
        if scene.end_s - scene.start_s >= MIN_SCENE_S:
            break
        before = cuts.get(scene.first, np.inf) if shortest else np.inf
        after = cuts.get(scene.last + 1, np.inf)
        # The longer one gives the image: its samples are those of the joined scene.
        other = shortest - 1 if before <= after else shortest + 1
        joined = scenes[other]
        joined = (
            replace(joined, end_s=scene.end_s) if other < shortest else replace(joined, start_s=scene.start_s)
        )
        scenes = [joined if n == other else s for n, s in enumerate(scenes) if n != shortest]
    return scenes


class Soundtrack:
    """The video of one attempt of a job: the timeline of its scenes, and copies of it with a sound."""

    def __init__(self, storage: Storage, generation_id: str, folder: str, video: StoredVideo) -> None:
        self._storage, self._folder, self._video = storage, folder, video
        self._key = video_key(generation_id, video.extension)
        self._scratch = Scratch()
        self.close = self._scratch.close

    def timeline(self, embed: Embed, duration_s: float, prompt: str | None) -> list[StoredItem]:
        """Return an item for each scene, whose image is stored, and one for the prompt.

        Raises:
            NotFound: the video was removed.
            VideoUndecodable: it was changed, or its images cannot be decoded.
        """
        path = self._path()
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self._video.sha256:
                raise VideoUndecodable("the stored video is not the one that was sent")
        try:
            sampled = run_limited(sample_video, str(path), limits=LIMITS)
        except ChildError as error:
            raise VideoUndecodable(f"the images of the video cannot be decoded: {error}") from error
        if not sampled.images:
            raise VideoUndecodable("no image of the video can be decoded")
        images = [Image.open(io.BytesIO(data), formats=["PNG"]) for data in sampled.images]
        embeddings = embed(images)
        items = []
        if prompt is not None:
            items.append(StoredItem(text=prompt, start_s=0.0, end_s=duration_s, fade_s=FADE_S))
        most = MAX_ITEMS - len(items)
        for n, scene in enumerate(find_scenes(sampled, embeddings, self._video.seconds, most=most)):
            if round(scene.start_s, 3) >= duration_s:
                break
            own = embeddings[scene.first : scene.last + 1]
            image = _png(images[scene.first + int((own @ own.mean(0)).argmax())])
            key = scene_key(self._folder, n)
            self._storage.put(key, image)
            items.append(
                StoredItem(
                    image_key=key,
                    image_sha256=hashlib.sha256(image).hexdigest(),
                    start_s=round(scene.start_s, 3),
                    end_s=round(min(scene.end_s, duration_s), 3),
                    fade_s=FADE_S,
                )
            )
        # The last image stays until the sound ends.
        items[-1].end_s = duration_s
        return items

    def write(self, n: int, waveform: np.ndarray, sample_rate: int, comment: str) -> None:
        """Store the video with the sound of output n.

        Raises:
            VideoUndecodable: the video cannot be read.
        """
        extension = self._video.extension
        target = self._scratch.path / f"{n}.{extension}"
        sound = waveform[: round(self._video.seconds * sample_rate)]
        size = self._path().stat().st_size + 20_000 * (1 + round(self._video.seconds))
        limits = replace(LIMITS, file_bytes=size + 1_000_000)
        try:
            run_limited(add_sound, str(self._path()), str(target), sound, sample_rate, comment, limits=limits)
        except ChildError as error:
            raise VideoUndecodable(f"the sound cannot be added to the video: {error}") from error
        self._storage.put(result_video_key(self._folder, n, extension), target)
        target.unlink()

    def _path(self) -> Path:
        copy = self._scratch.path / "video"
        return copy if copy.exists() else self._storage.local(self._key, copy)
