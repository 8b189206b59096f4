"""Read typed recipes from YAML; unknown keys and wrong types are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.audio.attributes import CONDITIONS
from models.bundle import Manifest
from models.networks.condition_encoder import MAX_GUIDANCE, TextCentring

Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # its products with steps and rows are seeds of PyTorch


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class VocoderRecipe(_Section):
    """AdamW on spectral distances, later with discriminators."""

    architecture: Literal["hifigan", "istft"] = "hifigan"
    steps: PositiveInt
    batch_size: PositiveInt = 16
    segment_frames: PositiveInt = 40  # mel frames per sample
    learning_rate: PositiveFloat = 1e-3
    half_life_steps: PositiveInt = 3000  # of HiFi-GAN: after which the learning rate is half
    upsample_initial_channel: PositiveInt = 192  # of HiFi-GAN
    dim: PositiveInt = 320  # this line and the next four: of the iSTFT vocoder
    depth: PositiveInt = 6
    warmup_steps: PositiveInt = 200
    decay_share: Share = 0.2  # see `DenoiserRecipe`
    ema_decay: float = Field(0.999, gt=0, lt=1)
    adversarial_from: NonNegativeInt = 10**9  # first step with discriminators
    finetune_steps: NonNegativeInt = 0  # further steps, on mels of the denoiser
    finetune_clips: PositiveInt = 256  # clips to make these mels of
    evaluate_every: PositiveInt = 500

    @model_validator(mode="after")
    def _finetunes_hifigan(self) -> VocoderRecipe:
        if self.architecture == "istft" and self.finetune_steps:
            raise ValueError("finetune_steps are of the architecture hifigan, got istft")
        return self


class DenoiserRecipe(_Section):
    """Flow matching on crops of clips; docs/training.md describes the variants of rows.

    The learning rate rises over `warmup_steps`, stays constant, and falls to 0 as a cosine over the last
    `decay_share` of the steps, so a run can be extended from its constant part (Hägele et al. 2024); 1.0 is
    the plain cosine schedule. Times are logit-normal (Esser et al. 2024, 3.1); a mean below 0 favours noisy
    times.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 32  # rows of one step, over all processes and micro-batches
    dim: PositiveInt = 256
    depth: PositiveInt = 8
    heads: PositiveInt = 4
    frames_per_token: PositiveInt = 4
    prediction: Literal["velocity", "data"] = "velocity"
    dropout: float = Field(0.0, ge=0, lt=1)
    condition: Literal["image", "text", "hybrid"] = "image"  # CLIPSynth, CLIPSynth-Text, CLIPSynth-Hybrid
    mix_share: Share = 0.0  # of rows that mix in a second clip, with a condition for each
    speeds: tuple[PositiveFloat, ...] = Field((1.0,), strict=False, min_length=1)  # a row plays at one
    scalars: tuple[str, ...] = Field((), strict=False)  # of `CONDITIONS`, and "agreement": the correspondence
    correspondence_weighting: bool = False  # draw clips by their correspondence
    density_balance: Share = 0.0  # draw clips with weight 1 / density ** this
    attribute_semitones: NonNegativeFloat = 0.0  # largest change of pitch either way
    attribute_tilt_db: NonNegativeFloat = 0.0  # per octave: largest tilt of the spectrum, in brightness
    attribute_contrast: PositiveFloat = 1.0  # largest factor on band distances, in noisiness
    attribute_tempo: PositiveFloat = 1.0  # largest factor on the tempo, in density
    attribute_pulse_rate: NonNegativeFloat = 0.0  # most restarts per second, in half of the faster rows
    pseudo_text: Share = 0.0  # share of frames replaced by one of the nearest generic phrases
    logit_mean: float = 0.0
    logit_std: PositiveFloat = 1.0
    gradient_accumulation_steps: PositiveInt = 1
    compile: bool = False
    learning_rate: PositiveFloat = 6e-4
    warmup_steps: PositiveInt = 200
    decay_share: Share = 0.2
    weight_decay: NonNegativeFloat = 0.02
    ema_decay: float = Field(0.999, gt=0, lt=1)
    cond_dropout_prob: Share = 0.1
    max_sigma: NonNegativeFloat = 1.0  # largest noise on a condition
    min_frames: PositiveInt = 100  # mel frames of a crop; all crops of a batch are equally long
    max_frames: PositiveInt = 500
    length_step: NonNegativeInt = 0  # crops are multiples of it, cut to whole tokens; 0: of a token
    evaluate_every: PositiveInt = 250
    patience: PositiveInt | None = None  # evaluations without a better dev loss before the stop

    @model_validator(mode="after")
    def _divides(self) -> DenoiserRecipe:
        check_heads(self.dim, self.heads)
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError("batch_size must be a multiple of gradient_accumulation_steps")
        unit = self.length_step or self.frames_per_token
        shortest, longest = -(-self.min_frames // unit) * unit, self.max_frames // unit * unit
        if shortest > longest or shortest < self.frames_per_token:
            raise ValueError(
                f"no crop of {self.min_frames} to {self.max_frames} frames is a multiple of {unit} "
                f"and has a token of {self.frames_per_token}"
            )
        if self.pseudo_text and self.condition != "image":
            raise ValueError(f"pseudo_text replaces frames, got condition {self.condition!r}")
        known = (*CONDITIONS, "agreement")
        if unknown := set(self.scalars) - set(known):
            raise ValueError(f"scalars must be among {', '.join(known)}, got {', '.join(sorted(unknown))}")
        return self


def check_heads(dim: int, heads: int) -> None:
    """Check that heads are equally wide, by an even number for the rotary embedding."""
    if dim % (2 * heads):
        raise ValueError(f"dim must be a multiple of twice the heads: 2 * {heads}, got {dim}")


class DistilRecipe(_Section):
    """Steps of guidance distillation after the denoiser; guidance scales are drawn from an interval.

    The other settings are those of `DenoiserRecipe`.
    """

    steps: PositiveInt
    learning_rate: PositiveFloat = 3e-4
    min_guidance: float = Field(1.0, ge=1, le=MAX_GUIDANCE)
    max_guidance: float = Field(10.0, ge=1, le=MAX_GUIDANCE)


class RequestDefaults(_Section):
    """Defaults of a request to the bundle."""

    num_inference_steps: PositiveInt = Manifest.num_inference_steps
    guidance_scale: float = Field(Manifest.guidance_scale, ge=0, le=MAX_GUIDANCE)
    guidance_interval: tuple[Share, Share] = Field(Manifest.guidance_interval, strict=False)
    time_shift: PositiveFloat = Manifest.time_shift
    attribute_reach: Share = Manifest.attribute_reach


class VqganRecipe(_Section):
    """The codec of SpecVQGAN: L1 on standardised crops, codebook loss and a patch discriminator."""

    steps: PositiveInt
    batch_size: PositiveInt = 16
    frames: PositiveInt = 192  # mel frames of a crop
    channels: tuple[PositiveInt, ...] = Field((96, 128), strict=False)
    codebook_size: PositiveInt = 512
    code_dim: PositiveInt = 16
    learning_rate: PositiveFloat = 6e-4
    warmup_steps: PositiveInt = 100
    decay_share: Share = 0.2  # see `DenoiserRecipe`
    adversarial_from: NonNegativeInt = 10**9  # first step with the discriminator
    evaluate_every: PositiveInt = 100


class TransformerRecipe(_Section):
    """The transformer of SpecVQGAN: cross-entropy of the next code on crops of `max_frames`.

    `max_sigma` and the learning rate work as in `DenoiserRecipe`.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 16
    dim: PositiveInt = 256
    depth: PositiveInt = 6
    heads: PositiveInt = 4
    dropout: float = Field(0.1, ge=0, lt=1)
    max_frames: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: PositiveInt = 100
    decay_share: Share = 0.2
    weight_decay: NonNegativeFloat = 0.02
    max_sigma: NonNegativeFloat = 1.0
    evaluate_every: PositiveInt = 50

    @model_validator(mode="after")
    def _divides(self) -> TransformerRecipe:
        check_heads(self.dim, self.heads)
        return self


class RunRecipe(_Section):
    """Settings of every run; relative paths count from the working directory."""

    name: str
    clips: str  # prepared folder, or its URL (s3://…, any of fsspec)
    cache: str | None = None  # folder on the node for copies of what a URL holds; default: ~/.cache/clipsynth
    cache_gb: PositiveFloat | None = None  # largest size of the copied shards; default: all of them
    run: str  # folder of the run
    seed: Seed = 0
    save_every_s: PositiveFloat = 120.0
    keep_states: NonNegativeInt = 3  # states of the latest evaluations to keep beside the last one
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(("tensorboard",), strict=False)
    threads: NonNegativeInt = 0  # of PyTorch per process; 0: PyTorch's choice
    workers: NonNegativeInt = 0  # processes that read clips, per training process
    in_memory: bool = False  # read all clips once (0.3 MB per 5 s)
    cuda_graphs: bool = False  # record the denoiser's passes, for small networks on one GPU
    bf16: bool = True  # if the device computes in it
    text_templates: bool = False
    text_centring: TextCentring = "own"
    anchor_share: Share = 0.0
    anchor_tau: PositiveFloat = 0.01
    anchor_likeness: float = -1.0
    text_sigma: NonNegativeFloat = 0.5
    bank_share: Share = 0.0
    bank_tau: PositiveFloat = 0.1


class Recipe(RunRecipe):
    """CLIPSynth: vocoder, denoiser and the bundle's defaults."""

    model: Literal["clipsynth"] = "clipsynth"
    vocoder_run: str | None = None  # another run, or a bundle, whose vocoder this run uses
    requests: RequestDefaults = RequestDefaults()
    vocoder: VocoderRecipe
    denoiser: DenoiserRecipe
    distil: DistilRecipe | None = None  # None: guidance in two passes

    @model_validator(mode="after")
    def _learns_its_default(self) -> Recipe:
        asked, d = self.requests.guidance_scale, self.distil
        if d is not None and not d.min_guidance <= asked <= d.max_guidance:
            raise ValueError(
                "distil must cover requests.guidance_scale: "
                f"{d.min_guidance:g} to {d.max_guidance:g}, got {asked:g}"
            )
        return self

    @property
    def vocoder_folder(self) -> Path:
        return Path(self.vocoder_run or self.run) / "vocoder"

    @property
    def vocoder_is_trained(self) -> bool:
        """Whether the vocoder is a part of a bundle or has a state, finished or not."""
        folder = self.vocoder_folder
        return any((folder / name).is_file() for name in ("state.pt", "config.json"))


class SpecVqganRecipe(RunRecipe):
    """The baseline SpecVQGAN (Iashin & Rahtu 2021), with encoder, mel and vocoder of the bundle `bundle`."""

    model: Literal["specvqgan"]
    bundle: str
    vqgan: VqganRecipe
    transformer: TransformerRecipe


# Keys of earlier versions, which the `recipe.yaml` of a run holds, with the one value that has an effect now.
RETIRED: dict[str, dict[str, object]] = {
    "": {"max_bank_size": 4096},
    "denoiser": {"optimizer": "adamw"},
    "vocoder": {"discriminator_width": 1, "spectral_weight": 5.0, "finetune_adversarial": True},
    "vqgan": {"bins_per_code": 8, "frames_per_code": 16, "adversarial_weight": 0.1, "restart_every": 50},
}
_KINDS: dict[str, type[Recipe] | type[SpecVqganRecipe]] = {"clipsynth": Recipe, "specvqgan": SpecVqganRecipe}


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe | SpecVqganRecipe:
    """Read a recipe of the kind in its key `model`; `overrides` are "a.b=value" with YAML values.

    Raises:
        ValueError: not YAML, an unknown key, a wrong type, or an override without "="; the message names the
            key.
    """
    try:
        values = yaml.safe_load(path.read_text())
        changes = [(*override.partition("="), override) for override in overrides or []]
        for key, equals, value, override in changes:
            if not equals:
                raise ValueError(f"--set needs key=value, got {override!r}")
            *parents, leaf = key.split(".")
            section = values
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = yaml.safe_load(value)
        for name, retired in RETIRED.items():
            section = values.get(name, {}) if name else values
            for key in [key for key, value in retired.items() if section.get(key) == value]:
                del section[key]
        kind = str(values.get("model", "clipsynth"))
        if kind not in _KINDS:
            raise ValueError(f"{path}: model: must be one of {', '.join(_KINDS)}, got {kind!r}")
        return _KINDS[kind].model_validate(values)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except (AttributeError, TypeError):
        raise ValueError(f"{path} is not a recipe, or --set names a key below a plain value") from None
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, e['loc']))}: "
            + ("no such field" if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, "))
            + ("" if e["type"] in ("extra_forbidden", "value_error") else f", got {e['input']!r}")
            for e in error.errors(include_url=False)
        ]
        raise ValueError(f"{path}: {'; '.join(wrong)}") from None


# Keys of a stage's section that may change when it resumes. Outside of the sections only `seed` may not.
MAY_CHANGE = frozenset(
    {"steps", "decay_share", "evaluate_every", "patience", "compile"} | {"finetune_steps", "finetune_clips"}
)
_SECTIONS = {"distil": ("denoiser", "distil")}


def differences(recipe: RunRecipe, saved: dict[str, Any], stage: str) -> list[str]:
    """Return how a recipe differs from the `saved` one of a stage, in the keys that may not change.

    A key that an earlier version did not know has its default there.
    """
    found = []
    for section in _SECTIONS.get(stage, (stage,)):
        now = getattr(recipe, section)
        before = saved.get(section) or {}
        for name, field in type(now).model_fields.items():
            old, new = (_jsonable(x) for x in (before.get(name, field.default), getattr(now, name)))
            if old != new and name not in MAY_CHANGE:
                found.append(f"{section}.{name} was {old}, now {new}")
    if saved.get("seed", 0) != recipe.seed:
        found.append(f"seed was {saved.get('seed', 0)}, now {recipe.seed}")
    return found


def _jsonable(value: Any) -> Any:
    """Return tuples as lists, as YAML has them."""
    return list(value) if isinstance(value, tuple) else value
