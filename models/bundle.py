"""`clipsynth.json`: name, limits and defaults of a bundle, and the hashes of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from models.schedule import share_at

FILE_NAME = "clipsynth.json"
FORMAT_VERSION = 1
# Fields that the first bundles lack. At their default they are left out of the hash, so old versions stay.
ADDED = ("time_shift", "attribute_reach", "scripts", "familiarity")
# By encoder, for bundles that do not say so: the similarity to training frames at familiarity 0.5 and the
# width of the logistic curve, of texts and of images; "" for any other (docs/decisions/model.md).
FAMILIARITY = {
    "PackagedEncoder": (0.50, 0.17, 1.01, 0.26),
    "MultilingualEncoder": (0.39, 0.10, 0.83, 0.21),
    "": (0.40, 0.12, 0.85, 0.2),
}
# ISO 15924 codes of the scripts that an encoder reads, for bundles that do not say so.
SCRIPTS = {
    "PackagedEncoder": ["Latn"],
    "MultilingualEncoder": ["Latn", "Cyrl", "Arab", "Hani", "Jpan", "Kore", "Thai"],
}


class BundleError(ValueError):
    """A bundle folder that cannot be served; the message names the part."""


def file_sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_parts(folder: Path, names: Sequence[str]) -> None:
    """Raise BundleError if a part is missing in a bundle, or not named in its `model_index.json`."""
    for name in names:
        if not (folder / name).is_dir():
            raise BundleError(f"{name}: the bundle {folder} lacks this part")
    named = json.loads((folder / "model_index.json").read_text())
    for name in names:
        if name not in named:
            raise BundleError(f"{name}: model_index.json does not name this part")


@dataclass(frozen=True)
class Manifest:
    """Name, limits and defaults of a bundle; durations in seconds.

    Attributes:
        output_gain: factor from the vocoder's level to the level of the training clips' sources.
        time_shift: of the sampler (`models.schedule`).
        attributes: quantiles of the training clips, as `models.audio.attributes.Scales` keeps them.
        attribute_reach: margin of attribute targets beyond the clips near the query, as a share of all clips
            (`models.conditioning.attribute_targets`). Saved under this name.
        scripts: ISO 15924 codes of the scripts that the encoder reads; empty for those in `SCRIPTS`.
        familiarity: as `FAMILIARITY`; empty for its values.
        sha256: hash of every file but this one, by relative path.
    """

    name: str
    min_duration_s: float
    max_duration_s: float
    duration_s: float = 4.0
    num_inference_steps: int = 12
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 0.65)
    time_shift: float = 1.0
    sample_rate: int = 16000
    output_gain: float = 1.0
    attributes: dict[str, list[float]] = field(default_factory=dict)
    attribute_reach: float = 0.0
    scripts: tuple[str, ...] = ()
    familiarity: tuple[float, ...] = ()
    format_version: int = FORMAT_VERSION
    sha256: dict[str, str] = field(default_factory=dict)

    @cached_property
    def version(self) -> str:
        """Short hash that changes when any file of the bundle changes."""
        values = asdict(self)
        for name in ADDED:
            if values[name] == getattr(Manifest, name):
                del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def guided_share(self) -> float:
        """Share of a sound's steps in which guidance is on."""
        low, high = (share_at(min(max(t, 0.0), 1.0), self.time_shift) for t in self.guidance_interval)
        return high - low

    def write(self, folder: Path) -> Manifest:
        """Hash the files of `folder`, write the manifest beside them and return it."""
        files = sorted(
            p for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME and p.suffix != ".md"
        )
        manifest = replace(self, sha256={p.relative_to(folder).as_posix(): file_sha256(p) for p in files})
        (folder / FILE_NAME).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check the manifest of a bundle.

        Raises:
            BundleError: no manifest, unknown format version or field, or a file that is missing or changed.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise BundleError(
                f"{folder} is no bundle: it has no {FILE_NAME}; `train` writes one to RUN/bundle"
            )
        try:
            values = json.loads(path.read_text())
            values["guidance_interval"] = tuple(values["guidance_interval"])
            for name in ("scripts", "familiarity"):
                values[name] = tuple(values.get(name, ()))
            manifest = cls(**values)
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise BundleError(f"{FILE_NAME} of {folder} cannot be read: {error}") from error
        if manifest.format_version != FORMAT_VERSION:
            found = manifest.format_version
            raise BundleError(f"{FILE_NAME}: format version {found}, this release reads {FORMAT_VERSION}")
        for name, expected in manifest.sha256.items():
            if not (folder / name).is_file():
                raise BundleError(f"{name.split('/')[0]}: the bundle lacks {name}")
            if file_sha256(folder / name) != expected:
                raise BundleError(
                    f"{name.split('/')[0]}: {name} has changed since the bundle was made (sha256)"
                )
        return manifest
