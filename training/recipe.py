"""Read typed recipes from YAML; unknown keys and wrong types are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class VocoderRecipe(_Section):
    """AdamW on mel and multi-resolution STFT distances.

    Attributes:
        segment_frames: mel frames per sample.
        half_life_steps: steps after which the learning rate is half.
        adversarial_from: first step with discriminators.
        discriminator_width: factor on the widths in `training.vocoder.discriminators`.
        spectral_weight: weight of the spectral distances beside the adversarial losses.
        finetune_steps: further steps, on mels that the denoiser makes of `finetune_clips` clips.
        finetune_adversarial: whether those steps use discriminators.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 16
    segment_frames: PositiveInt = 40
    learning_rate: PositiveFloat = 1e-3
    half_life_steps: PositiveInt = 3000
    upsample_initial_channel: PositiveInt = 192
    adversarial_from: NonNegativeInt = 10**9
    discriminator_width: PositiveInt = 1
    spectral_weight: PositiveFloat = 5.0
    finetune_steps: NonNegativeInt = 0
    finetune_clips: PositiveInt = 256
    finetune_adversarial: bool = True
    evaluate_every: PositiveInt = 500


class DenoiserRecipe(_Section):
    """Flow matching on crops of clips.

    Attributes:
        batch_size: rows of one step, over all processes and micro-batches.
        prediction: output of the network: the velocity, or the clean mel.
        condition: frames ("image", CLIPSynth), captions ("text", CLIPSynth-Text) or either ("hybrid").
        mix_share: share of rows that mix in a second clip, with a condition for each.
        speeds: a row plays at one of these.
        scalars: labels beside a condition: names of `models.audio.attributes.CONDITIONS`, and "agreement",
            the correspondence of sound and image. correspondence_weighting: draw clips by their
            correspondence. attribute_semitones: with a pitch label, a row is up to this many semitones higher
            or lower.
        attribute_tilt_db: with a brightness label, its spectrum tilts by up to this many dB per octave.
        attribute_contrast: with a noisiness label, its bands lie up to this many times as far below the
            loudest one, or as near.
        attribute_tempo: with a density label, it plays up to this many times as fast or as slow at its pitch.
        attribute_pulse_rate: half of the faster rows restart up to this many times per second.
        pseudo_text: share of frames replaced by one of the nearest phrases of a generic bank.
        logit_mean, logit_std: of the logit-normal times (Esser et al. 2024, 3.1); a mean below 0 trains more
            on the noisy times that a time shift samples.
        optimizer: "muon" updates the matrices of the blocks with Muon (Jordan et al. 2024) at AdamW's step
            size, and the rest with AdamW.
        decay_share: share of the steps in which the learning rate falls to 0 as a cosine, after
            `warmup_steps` of rise and a constant part, from any point of which a run can be extended (Hägele
            et al. 2024). 1.0 is the plain cosine schedule.
        max_sigma: largest noise on a condition.
        min_frames, max_frames: mel frames of a crop; all crops of a batch are equally long.
        length_step: a crop is a multiple of this many frames, cut to whole tokens; 0: of a token.
        patience: stop after this many evaluations without a better dev loss.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 32
    dim: PositiveInt = 256
    depth: PositiveInt = 8
    heads: PositiveInt = 4
    frames_per_token: PositiveInt = 4
    prediction: Literal["velocity", "data"] = "velocity"
    dropout: float = 0.0
    condition: Literal["image", "text", "hybrid"] = "image"
    mix_share: float = 0.0
    speeds: tuple[PositiveFloat, ...] = Field((1.0,), strict=False, min_length=1)
    scalars: tuple[str, ...] = Field((), strict=False)
    correspondence_weighting: bool = False
    attribute_semitones: float = 0.0
    attribute_tilt_db: float = 0.0
    attribute_contrast: PositiveFloat = 1.0
    attribute_tempo: PositiveFloat = 1.0
    attribute_pulse_rate: NonNegativeFloat = 0.0
    pseudo_text: float = 0.0
    logit_mean: float = 0.0
    logit_std: PositiveFloat = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    gradient_accumulation_steps: PositiveInt = 1
    compile: bool = False
    learning_rate: PositiveFloat = 6e-4
    warmup_steps: PositiveInt = 200
    decay_share: float = 0.2
    weight_decay: float = 0.02
    ema_decay: PositiveFloat = 0.999
    cond_dropout_prob: float = 0.1
    max_sigma: float = 1.0
    min_frames: PositiveInt = 100
    max_frames: PositiveInt = 500
    length_step: NonNegativeInt = 0
    evaluate_every: PositiveInt = 250
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _divides(self) -> DenoiserRecipe:
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
    guidance_scale: float = Manifest.guidance_scale
    guidance_interval: tuple[float, float] = Field(Manifest.guidance_interval, strict=False)
    time_shift: PositiveFloat = Manifest.time_shift
    attribute_reach: float = Field(Manifest.attribute_reach, ge=0, le=1)


class VqganRecipe(_Section):
    """The codec of SpecVQGAN: L1 on standardised crops, the codebook loss and a patch discriminator.

    Attributes:
        frames: mel frames of a crop.
        adversarial_from: first step with the discriminator.
        restart_every: an entry of the codebook without use for this many steps moves to a latent of the
            batch.
        decay_share: see `DenoiserRecipe`.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 16
    frames: PositiveInt = 192
    channels: tuple[PositiveInt, ...] = Field((96, 128), strict=False)
    codebook_size: PositiveInt = 512
    code_dim: PositiveInt = 16
    bins_per_code: PositiveInt = 8
    frames_per_code: PositiveInt = 16
    learning_rate: PositiveFloat = 6e-4
    warmup_steps: PositiveInt = 100
    decay_share: float = 0.2
    adversarial_from: NonNegativeInt = 10**9
    adversarial_weight: PositiveFloat = 0.1
    restart_every: PositiveInt = 50
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
    dropout: float = 0.1
    max_frames: PositiveInt = 400
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: PositiveInt = 100
    decay_share: float = 0.2
    weight_decay: float = 0.02
    max_sigma: float = 1.0
    evaluate_every: PositiveInt = 50


class RunRecipe(_Section):
    """Settings of every run; relative paths count from the working directory.

    Attributes:
        clips: prepared folder.
        run: folder of the run.
        threads: of PyTorch per process; 0 leaves the choice to PyTorch.
        workers: processes that read clips, per training process.
        in_memory: read all clips once (0.3 MB per 5 s).
        cuda_graphs: record and replay the denoiser's passes, for small networks on one GPU.
        bf16: use bf16 if the device computes in it.
    """

    name: str
    clips: str
    run: str
    seed: int = 0
    save_every_s: PositiveFloat = 120.0
    threads: int = 0
    workers: int = 0
    in_memory: bool = False
    cuda_graphs: bool = False
    bf16: bool = True
    text_templates: bool = False
    text_centring: TextCentring = "own"
    anchor_share: float = 0.0
    anchor_tau: PositiveFloat = 0.01
    anchor_likeness: float = -1.0
    text_sigma: float = 0.5
    bank_share: float = 0.0
    bank_tau: PositiveFloat = 0.1
    max_bank_size: PositiveInt = 4096


class Recipe(RunRecipe):
    """CLIPSynth: vocoder, denoiser and the bundle's defaults.

    Attributes:
        vocoder_run: folder of another run whose vocoder this run uses.
        requests: defaults of the bundle.
        distil: None for guidance in two passes.
    """

    model: Literal["clipsynth"] = "clipsynth"
    vocoder_run: str | None = None
    requests: RequestDefaults = RequestDefaults()
    vocoder: VocoderRecipe
    denoiser: DenoiserRecipe
    distil: DistilRecipe | None = None

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
        """Folder of the vocoder's state."""
        return Path(self.vocoder_run or self.run) / "vocoder"


class SpecVqganRecipe(RunRecipe):
    """The baseline SpecVQGAN (Iashin & Rahtu 2021), with encoder, mel and vocoder of the bundle `bundle`."""

    model: Literal["specvqgan"]
    bundle: str
    vqgan: VqganRecipe
    transformer: TransformerRecipe


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
            + ("no such field" if e["type"] == "extra_forbidden" else f"{e['msg']}, got {e['input']!r}")
            for e in error.errors(include_url=False)
        ]
        raise ValueError(f"{path}: {'; '.join(wrong)}") from None
