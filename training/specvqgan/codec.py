"""Train the codec of SpecVQGAN.

Losses: L1 on standardised mels; codebook and commitment loss (van den Oord et al. 2017, eq. 3, but beta
    weighs the codebook's term as in the code of Esser et al. 2021 and diffusers); hinge losses of a patch
    discriminator (Esser et al. 2021, eq. 5). The paper's perceptual loss (LPAPS) is left out, as it needs a
    network trained on labels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from models.baselines.mel_codec import MelCodec
from training.data.clips import Clips, ClipSet, crop_mel, random_start
from training.denoiser.validation import spectrograms
from training.loop import Run, autocast, marked, one_ahead, update
from training.recipe import SpecVqganRecipe
from training.state import TrainingState, learning_rate

DEV_BATCH = 32
ADVERSARIAL_WEIGHT = 0.1
RESTART_EVERY = 50  # steps after which an unused entry moves to a latent of the batch


class PatchDiscriminator(nn.Module):
    """Judge overlapping patches of a standardised mel (Isola et al. 2017, 3.2.2), at 1/4 width."""

    def __init__(self, channels: tuple[int, ...] = (1, 16, 32, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(1, b), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return a verdict per patch of images (B, H, W)."""
        verdicts: torch.Tensor = self.layers(image[:, None])
        return verdicts


def build_codec(recipe: SpecVqganRecipe, clips: ClipSet) -> MelCodec:
    """Return an untrained codec with the statistics of the training clips."""
    v = recipe.vqgan
    codec = MelCodec(
        codebook_size=v.codebook_size, code_dim=v.code_dim, channels=v.channels, n_mels=len(clips.mel_mean)
    )
    codec.mel_mean.copy_(clips.mel_mean)
    codec.mel_std.copy_(clips.mel_std)
    return codec


def draw_mels(clips: Clips, recipe: SpecVqganRecipe, n: int) -> torch.Tensor:
    """Return the random crops (B, frames, M) of step n, which depend only on (seed, n)."""
    g = torch.Generator().manual_seed(recipe.seed * 1_000_003 + n)
    mels = []
    for _ in range(recipe.vqgan.batch_size):
        mel = clips.mel(int(torch.randint(len(clips), (), generator=g)))
        start = random_start(len(mel), recipe.vqgan.frames, g)
        mels.append(crop_mel(mel, recipe.vqgan.frames, start))
    return torch.stack(mels)


def perplexity(codes: torch.Tensor, codebook_size: int) -> float:
    """Return exp(entropy) of the codes: the number of entries of the codebook in effective use."""
    share = torch.bincount(codes.flatten(), minlength=codebook_size).float() / codes.numel()
    return math.exp(torch.special.entr(share).sum().item())


@torch.no_grad()
def dev_figures(codec: MelCodec, clips: Clips, frames: int, device: torch.device) -> dict[str, float]:
    """Return the mean L1 on the first `frames` of standardised dev clips, and the codes' perplexity."""
    distances, codes = [], []
    for start in range(0, len(clips), DEV_BATCH):
        part = range(start, min(start + DEV_BATCH, len(clips)))
        mel = torch.stack([crop_mel(clips.mel(i), frames, 0) for i in part]).to(device)
        codes.append(codec.encode(mel))
        distances.append(((codec.decode(codes[-1]) - mel) / codec.mel_std).abs().mean((1, 2)))
    return {
        "dev": torch.cat(distances).mean().item(),
        "dev_perplexity": perplexity(torch.cat(codes), codec.config.codebook_size),
    }


def train_vqgan(recipe: SpecVqganRecipe, clips: ClipSet, accelerator: Accelerator) -> MelCodec:
    """Train or resume; return the codec.

    Raises:
        ValueError: the saved state is of another shape than the recipe's.
    """
    torch.manual_seed(recipe.seed)
    v = recipe.vqgan
    step = _CodecStep(recipe, clips, accelerator)
    state = step.state
    state.resume()
    if state.step < v.steps:
        run = Run("vqgan", state.folder, recipe, accelerator)
        mels = one_ahead(lambda n: draw_mels(clips.train, recipe, n), range(state.step, v.steps))

        def evaluate(n: int) -> bool:
            step.codec.eval()
            for name, value in dev_figures(step.codec, clips.dev, v.frames, accelerator.device).items():
                run.log(name, n, value)
            part = range(min(4, len(clips.dev)))
            real = torch.stack([crop_mel(clips.dev.mel(i), v.frames, 0) for i in part]).to(accelerator.device)
            with torch.no_grad():
                made = step.codec.decode(step.codec.encode(real))
            run.show(n, spectrograms(real.cpu(), made.cpu()))
            return True

        run.steps(
            state,
            v.steps,
            lambda n: step(n, next(mels)),
            evaluate=evaluate,
            evaluate_every=v.evaluate_every,
            clips_per_step=v.batch_size,
        )
    return step.codec.cpu().eval()


class _CodecStep:
    """Take one step of the codec and, from `adversarial_from` on, its discriminator; owns their state."""

    def __init__(self, recipe: SpecVqganRecipe, clips: ClipSet, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.codec, self.discriminator = build_codec(recipe, clips), PatchDiscriminator()
        parts: dict[str, nn.Module] = {"codec": self.codec, "discriminator": self.discriminator}
        optimizers = [
            torch.optim.AdamW(part.to(accelerator.device).parameters(), betas=(0.5, 0.9))
            for part in parts.values()
        ]
        # Steps since each entry was last used.
        self.unused_for = torch.full((recipe.vqgan.codebook_size,), RESTART_EVERY)
        unused = {"unused_for": self.unused_for}
        self.state = TrainingState(Path(recipe.run) / "vqgan", parts, optimizers, tensors=unused)

    def __call__(self, n: int, mel: torch.Tensor) -> torch.Tensor:
        v = self.recipe.vqgan
        self.state.set_learning_rate(learning_rate(v, n))
        self.codec.train()
        mel = mel.to(self.accelerator.device)
        # Entries far from the latents would never be used, so all start at latents.
        if n == 0:
            with torch.no_grad():
                latents = self.codec.latents(self.codec.to_patches(mel))
            self._restart(latents.permute(0, 2, 3, 1).flatten(0, 2), n)
        with autocast(self.recipe, self.accelerator.device):
            patches, made, codebook_loss, latents = self.codec(mel)
        distance = F.l1_loss(made, patches)
        loss = distance + codebook_loss
        if n >= v.adversarial_from:
            loss = loss + ADVERSARIAL_WEIGHT * self._adversarial(self._image(made), self._image(patches))
        norm = update(self.accelerator, self.state.optimizers[0], self.codec, loss, 1.0)
        self._count(latents)
        self._restart(latents, n)
        return marked(distance, norm)

    def _image(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the standardised mel (B, F, M) of patches."""
        return (self.codec.to_mel(patches) - self.codec.mel_mean) / self.codec.mel_std

    def _adversarial(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Take a step of the discriminator; return the adversarial loss of `made`."""
        self.discriminator.requires_grad_(True)
        with autocast(self.recipe, self.accelerator.device):
            verdicts = self.discriminator(real), self.discriminator(made.detach())
        loss = F.relu(1 - verdicts[0]).mean() + F.relu(1 + verdicts[1]).mean()
        update(self.accelerator, self.state.optimizers[1], self.discriminator, loss, 1.0)
        self.discriminator.requires_grad_(False)
        with autocast(self.recipe, self.accelerator.device):
            return -self.discriminator(made).float().mean()

    @torch.no_grad()
    def _count(self, latents: torch.Tensor) -> None:
        """Count the steps since each entry was used."""
        used = torch.cdist(latents, self.codec.vqgan.quantize.embedding.weight).argmin(1).unique()
        self.unused_for += 1
        self.unused_for[used.cpu()] = 0

    @torch.no_grad()
    def _restart(self, latents: torch.Tensor, n: int) -> None:
        """Move entries without use for `RESTART_EVERY` steps to random latents (N, code_dim) of this step."""
        idle = (self.unused_for >= RESTART_EVERY).nonzero()[:, 0]
        if len(idle):
            g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
            chosen = latents[torch.randint(len(latents), (len(idle),), generator=g).to(latents.device)]
            self.codec.vqgan.quantize.embedding.weight[idle.to(latents.device)] = chosen.to(torch.float32)
            self.unused_for[idle] = 0
