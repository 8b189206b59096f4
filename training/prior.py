"""Fit a step from text embeddings to image embeddings without captions, and keep the phrases for it.

The non-diffusion prior of ECLIPSE (Patel et al. 2023) at a thousandth of its size. Its pairs are a training
image and one of the nearest phrases of a generic list (after Lafite2, Zhou et al. 2022, with retrieval
instead of generation), so no text belongs to a clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.conditioning.phrase_bank import TAU, PhraseBank
from models.networks.condition_encoder import ConditionEncoder
from models.networks.load_encoder import load_encoder
from training.data.clips import ClipSet

CONTRASTIVE = 0.2  # weight of ECLIPSE's contrastive term, their eq. 3
TEMPERATURE = 0.07
FILE = "phrases.safetensors"


@torch.enable_grad()
def fit_prior(
    encoder: ConditionEncoder,
    bank: PhraseBank,
    embeds: torch.Tensor,
    *,
    dim: int = 512,
    k: int = 3,
    steps: int = 500,
    batch_size: int = 256,
    seed: int = 0,
) -> ConditionEncoder:
    """Return the condition encoder with a prior of width `dim`, fitted to images (N, D) as encoded.

    Loss: 1 - cosine of a phrase's mapped embedding and its image, plus the contrastive loss within the batch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fitted = encoder.changed(prior_dim=dim, prior_share=1.0, bank_share=0.0)
    fitted.prior.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    cosines, numbers = bank.similar(embeds, k)
    phrases = bank.phrases.clone()  # encoders return inference tensors
    images = fitted.centre(embeds, "image")
    optimizer = torch.optim.AdamW(fitted.prior.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    size = min(batch_size, len(embeds))
    for _ in range(steps):
        picks = torch.randperm(len(embeds), generator=generator)[:size]
        choice = torch.multinomial((cosines[picks] / TAU).softmax(-1), 1, generator=generator)
        template = torch.randint(len(phrases), (size,), generator=generator)
        texts = phrases[template, numbers[picks].gather(1, choice)[:, 0]]
        mapped = fitted.centre(texts, "text")
        similar = mapped @ images[picks].T
        loss = 1 - similar.diagonal().mean()
        loss = loss + CONTRASTIVE * F.cross_entropy(similar / TEMPERATURE, torch.arange(size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return fitted.changed(bank_share=encoder.config.bank_share)


def load_bank(clips: ClipSet) -> PhraseBank:
    """Return the phrase bank of a prepared folder, stored there as `phrases.safetensors`."""
    folder = clips.folder
    return PhraseBank.kept(folder / FILE, lambda: load_encoder(folder / "encoder"), clips.image_mean)
