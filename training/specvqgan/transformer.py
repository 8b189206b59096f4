"""Train the transformer of SpecVQGAN: cross-entropy of each code, given a frame and earlier codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from models.baselines.code_transformer import CodeTransformer
from models.baselines.mel_codec import MelCodec
from models.networks.condition_encoder import ConditionEncoder
from training.data.batches import CLEAN_SHARE
from training.data.clips import Clips, ClipSet, crop_mel
from training.denoiser.flow_matching import build_condition_encoder
from training.loop import Run, autocast, marked, update
from training.recipe import SpecVqganRecipe
from training.state import TrainingState, learning_rate

DEV_BATCH = 32


class NextCode(nn.Module):
    """Condition encoder and transformer as one module that returns the loss of codes, given noised frames."""

    def __init__(self, condition_encoder: ConditionEncoder, transformer: CodeTransformer) -> None:
        super().__init__()
        self.condition_encoder, self.transformer = condition_encoder, transformer

    def forward(
        self, embeds: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean cross-entropy, in nats per code.

        Args:
            embeds: frames (B, D) as encoded.
            noise: (B, D) of unit expected norm, to scale by `sigma` (B,).
            codes: (B, L).
        """
        centred = self.condition_encoder.centre(embeds, "image")
        noised = F.normalize(centred + sigma[:, None] * noise, dim=-1)[:, None]
        one = torch.ones_like(sigma)[:, None]
        conditions = self.condition_encoder(noised, one, sigma[:, None], one.bool()).tokens[:, 0]
        logits = self.transformer(conditions, codes)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


@torch.no_grad()
def encode_clips(clips: Clips, codec: MelCodec, min_frames: int) -> list[torch.Tensor]:
    """Return the codes (columns, codes per column) of whole clips, padded with silence to `min_frames`."""
    codes = []
    for i in range(len(clips)):
        mel = clips.mel(i)
        mel = crop_mel(mel, max(len(mel), min_frames), 0)
        codes.append(codec.encode(mel[None].to(codec.device)).cpu().view(-1, codec.codes_per_column))
    return codes


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def draw(clips: Clips, codes: Sequence[torch.Tensor], recipe: SpecVqganRecipe, columns: int, n: int) -> Rows:
    """Return embeddings (B, D), noise (B, D), sigma (B,) and codes (B, L) of step n, given by (seed, n)."""
    t = recipe.transformer
    g = torch.Generator().manual_seed(recipe.seed * 1_000_003 + n)

    def one_of(count: int) -> int:
        return int(torch.randint(count, (), generator=g))

    rows = []
    for _ in range(t.batch_size):
        i = one_of(len(clips))
        embeds = clips.embeds(i)
        start = one_of(len(codes[i]) - columns + 1)
        rows.append((embeds[one_of(len(embeds))], codes[i][start : start + columns].flatten()))
    embeds, crops = (torch.stack(values) for values in zip(*rows, strict=True))
    noise = torch.randn(embeds.shape, generator=g) / embeds.shape[-1] ** 0.5
    sigma = t.max_sigma * torch.rand(len(embeds), generator=g)
    sigma[torch.rand(len(embeds), generator=g) < CLEAN_SHARE] = 0.0
    return embeds, noise, sigma, crops


def dev_rows(clips: Clips, codes: Sequence[torch.Tensor], columns: int) -> list[Rows]:
    """Return the starts of dev clips with their middle frames, without noise."""
    found = []
    for first in range(0, len(clips), DEV_BATCH):
        part = range(first, min(first + DEV_BATCH, len(clips)))
        embeds = torch.stack([e[len(e) // 2] for e in map(clips.embeds, part)])
        crops = torch.stack([codes[i][:columns].flatten() for i in part])
        found.append((embeds, torch.zeros_like(embeds), torch.zeros(len(part)), crops))
    return found


@torch.no_grad()
def dev_loss(model: NextCode, rows: list[Rows], device: torch.device) -> float:
    losses = [model(*(x.to(device) for x in batch)).item() * len(batch[0]) for batch in rows]
    return sum(losses) / sum(len(batch[0]) for batch in rows)


def train_transformer(
    recipe: SpecVqganRecipe, clips: ClipSet, codec: MelCodec, accelerator: Accelerator
) -> tuple[ConditionEncoder, CodeTransformer]:
    """Train or resume; return the parts with the weights of the lowest dev loss.

    Raises:
        ValueError: the saved state is of another shape than the recipe's.
    """
    torch.manual_seed(recipe.seed)
    t = recipe.transformer
    columns = t.max_frames // codec.config.frames_per_code
    transformer = CodeTransformer(
        codebook_size=codec.config.codebook_size,
        max_codes=columns * codec.codes_per_column,
        dim=t.dim,
        depth=t.depth,
        heads=t.heads,
        dropout=t.dropout,
        condition_dim=len(clips.image_mean),
    )
    model = NextCode(build_condition_encoder(recipe, clips), transformer).to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=t.weight_decay)
    state = TrainingState(Path(recipe.run) / "transformer", {"transformer": model}, [optimizer])
    state.resume()
    if state.step < t.steps:
        codec.to(accelerator.device)
        codes, dev_codes = (encode_clips(split, codec, t.max_frames) for split in (clips.train, clips.dev))
        validation = dev_rows(clips.dev, dev_codes, columns)
        run = Run("transformer", state.folder, recipe, accelerator)

        def step(n: int) -> torch.Tensor:
            state.set_learning_rate(learning_rate(t, n))
            model.train()
            rows = [x.to(accelerator.device) for x in draw(clips.train, codes, recipe, columns, n)]
            with autocast(recipe, accelerator.device):
                loss = model(*rows)
            return marked(loss, update(accelerator, state.optimizers[0], model, loss, 1.0))

        def evaluate(n: int) -> bool:
            """Measure the dev loss and keep the best weights."""
            model.eval()
            loss = dev_loss(model, validation, accelerator.device)
            run.log("dev", n, loss)
            state.record(loss)
            return True

        run.steps(
            state,
            t.steps,
            step,
            evaluate=evaluate,
            evaluate_every=t.evaluate_every,
            clips_per_step=t.batch_size,
        )
    state.load_best()
    model.cpu().eval()
    return model.condition_encoder, model.transformer
