"""Typed recipes: YAML files whose unknown keys and wrong types are errors."""

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
    """AdamW on mel and multi-resolution STFT distances; `segment_frames` mel frames per sample.

    From step `adversarial_from` on discriminators play, `discriminator_width` times as wide as `training.discriminators` has them, with the spectral distances
    at `spectral_weight`. After `steps`, `finetune_steps` on mels
    that the denoiser made of `finetune_clips` clips, without discriminators unless `finetune_adversarial`. The learning rate halves every `half_life_steps`.
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
    """The flow-matching loss on crops of `min_frames` to `max_frames` mel frames in multiples of `length_step` (0: of a token), one length per batch, of whole tokens.

    `condition`: what the sound is generated from: frames ("image", CLIPSynth), captions ("text", CLIPSynth-Text) or either ("hybrid").
    The learning rate rises over `warmup_steps`, stays, and falls as a cosine to zero over the last `decay_share` of the steps, so that a
    run can be prolonged from any point before (Hägele et al. 2024); 1.0 is the plain cosine schedule. `batch_size` counts the rows of one
    step over all processes and micro-batches. `patience`: stop after so many evaluations without a better dev loss. `optimizer` "muon" updates the blocks' matrices by Muon (Jordan et al.
    2024) at AdamW's step size, and everything else by AdamW.

    A row is played at one of `speeds`. A share `mix_share` are mixes with a second clip as it is, with a condition of each. `scalars` are told beside a
    condition: the names of `models.attributes.CONDITIONS`, and "agreement" of sound and image, by which clips are drawn as well with
    `agreement_weight`. A row that is told an attribute is varied in it (`training.told`), its pitch by up to `attribute_semitones` and its brightness by up to `attribute_tilt` dB per
    octave either way; told its noisiness, its bands lie up to `attribute_contrast` times as far below the loudest, or as near; told its density, it goes up to `attribute_pace` times
    as fast or as slow, and of those that go faster half start again up to `attribute_pulses` times per second.
    In the place of a share `pseudo_text` of frames stands one of the phrases of a generic bank that are nearest. Times are logit-normal with `logit_mean` and `logit_std` (Esser et al.
    2024, 3.1): less than 0 looks more at the noisy times that a time shift samples at.
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
    agreement_weight: bool = False
    attribute_semitones: float = 0.0
    attribute_tilt: float = 0.0
    attribute_contrast: PositiveFloat = 1.0
    attribute_pace: PositiveFloat = 1.0
    attribute_pulses: NonNegativeFloat = 0.0
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
                f"no crop of {self.min_frames} to {self.max_frames} frames is a multiple of {unit} and has a token of {self.frames_per_token}"
            )
        if self.pseudo_text and self.condition != "image":
            raise ValueError(f"pseudo_text takes the place of frames alone, got condition {self.condition!r}")
        known = (*CONDITIONS, "agreement")
        if unknown := set(self.scalars) - set(known):
            raise ValueError(f"scalars must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
        return self


class DistilRecipe(_Section):
    """`steps` on top of the trained denoiser, after which a guided step needs one pass of it; weights of guidance are drawn from `lowest` to `highest`.

    The rest is that of `DenoiserRecipe`.
    """

    steps: PositiveInt
    learning_rate: PositiveFloat = 3e-4
    lowest: float = Field(1.0, ge=1, le=MAX_GUIDANCE)
    highest: float = Field(10.0, ge=1, le=MAX_GUIDANCE)


class RequestDefaults(_Section):
    """What a request to the bundle gets where it does not say."""

    num_inference_steps: PositiveInt = Manifest.num_inference_steps
    guidance_scale: float = Manifest.guidance_scale
    guidance_interval: tuple[float, float] = Field(Manifest.guidance_interval, strict=False)
    time_shift: PositiveFloat = Manifest.time_shift
    attribute_reach: float = Field(Manifest.attribute_reach, ge=0, le=1)


class VqganRecipe(_Section):
    """The codec of SpecVQGAN: L1 on standardised crops of `frames`, the codebook's loss, and from step `adversarial_from` on a patch discriminator.

    An entry of the codebook that none of the last `restart_every` steps used is put where a latent of the current batch is. The learning rate is that of
    `DenoiserRecipe`.
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
    """The transformer of SpecVQGAN: cross-entropy of the next code, on crops of `max_frames`; the weights of the best dev loss are kept.

    The condition's noise and the learning rate are those of `DenoiserRecipe`.
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
    """What every run has: the prepared folder, the run folder, and how it is run. Relative paths count from the working directory.

    `threads` of PyTorch per process, 0 for its own choice; `workers` that read clips, per process; `in_memory`: clips are read once (0.3 MB per 5 s); `cuda_graphs`: the denoiser's passes are
    recorded and replayed, for small networks on one GPU (`training.graphs`); `bf16` where the device computes in it.
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

    `vocoder_run`: another run's folder, whose vocoder this one shares. `requests`: the bundle's defaults. `distil`: none for a denoiser that takes
    guidance as a pass of its own.
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
        if d is not None and not d.lowest <= asked <= d.highest:
            raise ValueError(
                f"distil must learn requests.guidance_scale: {d.lowest:g} to {d.highest:g}, got {asked:g}"
            )
        return self

    @property
    def vocoder_folder(self) -> Path:
        """Where the state of the vocoder is kept."""
        return Path(self.vocoder_run or self.run) / "vocoder"


class SpecVqganRecipe(RunRecipe):
    """The baseline SpecVQGAN (Iashin & Rahtu 2021); encoder, mel and vocoder are those of the bundle folder `bundle`."""

    model: Literal["specvqgan"]
    bundle: str
    vqgan: VqganRecipe
    transformer: TransformerRecipe


_KINDS: dict[str, type[Recipe] | type[SpecVqganRecipe]] = {"clipsynth": Recipe, "specvqgan": SpecVqganRecipe}


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe | SpecVqganRecipe:
    """Read a recipe, of the kind that its key `model` says; `overrides` are "a.b=value" with YAML values.

    Raises:
        ValueError: not YAML, an unknown key, a wrong type, or an override without "="; the message names the key.
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
        raise ValueError(
            f"{path} is not a recipe, or --set goes through a key that has no keys below it"
        ) from None
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors(include_url=False)
        ]
        raise ValueError(f"{path}: {'; '.join(wrong)}") from None
