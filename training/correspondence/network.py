"""Learn from the pairs themselves which sounds and images belong together, and score every clip.

Two small networks on frozen features map sounds and images to one space, where the two sides of a clip should
be nearest (symmetric InfoNCE within batches, van den Oord et al. 2018). No label enters. Networks that never
saw a clip's video score it (cross-fitting); otherwise they could memorise a wrong pair, which then looks
right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

NUM_CEPSTRA = 20
VIDEOS_PER_FOLD, MIN_FOLDS = 4, 3
MODULATION_GROUPS = 16  # groups of neighbouring mel bands
MODULATION_EDGES_HZ = (0.1, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


@dataclass(frozen=True)
class CorrespondenceOptions:
    """Sizes and training of the networks; `noise` in standard deviations of a feature."""

    folds: int = 5  # fewer if a fold would have under `VIDEOS_PER_FOLD` videos
    repeats: int = 2  # cross-fits with different folds and weights; the score is their mean
    hidden: int = 256
    dim: int = 64
    temperature: float = 0.2
    epochs: int = 24
    max_steps: int = 4000  # per network
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.3
    noise: float = 1.0
    bank: int = 4096  # clips to compare a score with
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Standardised features `sounds` (N, S) and `images` (N, D) of N clips, and their video's number (N,)."""

    sounds: torch.Tensor
    images: torch.Tensor
    videos: torch.Tensor

    def __len__(self) -> int:
        return len(self.videos)

    def at(self, rows: torch.Tensor) -> Pairs:
        return Pairs(self.sounds[rows], self.images[rows], self.videos[rows])


class CorrespondenceNetwork(nn.Module):
    """Map sound features (N, S) and image embeddings (N, D) to unit vectors (N, dim) of one space."""

    def __init__(self, sound_size: int, image_size: int, options: CorrespondenceOptions) -> None:
        super().__init__()
        self.noise, self.temperature = options.noise, options.temperature
        self.sound, self.image = (
            nn.Sequential(
                nn.Dropout(options.dropout),
                nn.Linear(size, options.hidden),
                nn.GELU(),
                nn.Dropout(options.dropout),
                nn.Linear(options.hidden, options.dim),
            )
            for size in (sound_size, image_size)
        )

    def forward(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        tables = [pairs.sounds, pairs.images]
        if self.training:
            tables = [table + self.noise * torch.randn_like(table) for table in tables]
        sounds, images = self.sound(tables[0]), self.image(tables[1])
        return F.normalize(sounds, dim=-1), F.normalize(images, dim=-1)

    def loss(self, pairs: Pairs) -> torch.Tensor:
        """Return symmetric InfoNCE; clips of the same video are not negatives of each other."""
        sounds, images = self(pairs)
        logits = sounds @ images.T / self.temperature
        same = pairs.videos[:, None] == pairs.videos
        logits = logits.masked_fill(same.fill_diagonal_(False), -torch.inf)
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    @torch.inference_mode()
    def score(self, pairs: Pairs, bank: Pairs) -> torch.Tensor:
        """Return scores (N,): similarity of a clip's sides less that of each to `bank` (log-sum-exp)."""
        (sounds, images), (all_sounds, all_images) = self(pairs), self(bank)
        others = torch.logsumexp(sounds @ all_images.T / self.temperature, 1)
        others = others + torch.logsumexp(images @ all_sounds.T / self.temperature, 1)
        return (sounds * images).sum(1) / self.temperature - others / 2


def train_network(
    pairs: Pairs, options: CorrespondenceOptions, generator: torch.Generator
) -> tuple[CorrespondenceNetwork, float]:
    """Train on nine tenths of the videos; return the network of the best epoch on the rest, and its loss.

    The rest has at least three videos, because one alone has no wrong pair.

    The loss is InfoNCE less its value at chance: 0 means that nothing was learned, negative is better.
    """
    parts = min(10, len(pairs.videos.unique()) // 3)
    in_validation = _fold_of(pairs.videos, parts, generator) == 0
    train, validation = (pairs.at(rows.nonzero()[:, 0]) for rows in (~in_validation, in_validation))
    validation = validation.at(torch.arange(min(len(validation), 1024)))
    network = CorrespondenceNetwork(pairs.sounds.shape[1], pairs.images.shape[1], options)
    size = min(options.batch_size, len(train))
    steps = min(options.max_steps, options.epochs * (len(train) // size))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    best, weights = torch.inf, network.state_dict()
    every = max(1, steps // options.epochs)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < size:
            order = torch.randperm(len(train), generator=generator)
        rows, order = order[:size], order[size:]
        optimizer.zero_grad()
        network.train().loss(train.at(rows)).backward()
        optimizer.step()
        schedule.step()
        if step % every == 0:
            with torch.inference_mode():
                chance = torch.tensor(float(len(validation))).log().item()
                loss = float(network.eval().loss(validation)) - chance
            if loss < best:
                best, weights = loss, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    return network.eval(), best


def cross_fit(
    pairs: Pairs, others: Pairs, options: CorrespondenceOptions
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return scores of `pairs` (N,), scores of `others` (M,), and the mean validation loss less chance.

    Networks that never saw a pair's video score it; all networks score `others`. The scores of each fold are
    standardised, because the scales of two networks differ.

    Raises:
        ValueError: too few videos for `MIN_FOLDS` folds.
    """
    num_videos, least = len(pairs.videos.unique()), VIDEOS_PER_FOLD * MIN_FOLDS
    if num_videos < least:
        raise ValueError(
            f"correspondence needs at least {least} training videos, here are {num_videos}; "
            "prepare about 20 videos or more, or use --wav2clip"
        )
    folds_each = min(options.folds, num_videos // VIDEOS_PER_FOLD)
    own, other, losses = torch.zeros(len(pairs)), torch.zeros(len(others)), []
    networks = folds_each * options.repeats
    for repeat in range(options.repeats):
        generator = torch.Generator().manual_seed(options.seed * 1009 + repeat)
        folds = _fold_of(pairs.videos, folds_each, generator)
        for fold in range(folds_each):
            inside, outside = (folds == fold).nonzero()[:, 0], (folds != fold).nonzero()[:, 0]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                network, loss = train_network(pairs.at(outside), options, generator)
            bank = pairs.at(torch.randperm(len(pairs), generator=generator)[: options.bank])
            scores = network.score(pairs.at(inside), bank)
            mean, std = scores.mean(), scores.std().clamp(min=1e-6)
            own[inside] += (scores - mean) / std / options.repeats
            other += (network.score(others, bank) - mean) / std / networks
            losses.append(loss)
    return own, other, sum(losses) / len(losses)


def _fold_of(videos: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """Return the fold (N,) of each clip: `folds` random parts with equally many videos."""
    _, numbers = videos.unique(return_inverse=True)
    order = torch.randperm(int(numbers.max()) + 1, generator=generator)
    return order[numbers] % folds


def sound_features(mel: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Return a summary (8 M + 227,) fp32 of a log-mel (F, M), M >= 20, that ignores when things happen.

    Per band: mean, deviation, deviation of the change, quantiles over time, the spectrum where it is loudest,
    and its mean difference to the next band. Then the same of cepstra, and the modulation spectrum of the
    envelopes.

    Args:
        frame_rate: mel frames per second, in Hz.
    """
    mel = mel.float()
    loudest = torch.softmax(2 * mel.mean(1), 0) @ mel
    quantiles = torch.quantile(mel, torch.tensor([0.1, 0.5, 0.9]), dim=0).flatten()
    roughness = mel.diff(dim=1).abs().mean(0)
    bands = [mel.mean(0), mel.std(0), mel.diff(dim=0).std(0), quantiles, loudest, roughness]
    cepstra = mel @ _cosines(mel.shape[1]).T  # (F, NUM_CEPSTRA)
    outer = torch.quantile(cepstra, torch.tensor([0.1, 0.9]), dim=0).flatten()
    timbre = [cepstra.mean(0), cepstra.std(0), (cepstra[2:] - cepstra[:-2]).std(0), outer]
    return torch.cat([*bands, *timbre, _modulation(mel, frame_rate)])


def _cosines(size: int) -> torch.Tensor:
    """Return the first rows of the DCT-II, (NUM_CEPSTRA, size)."""
    places = torch.arange(size) + 0.5
    return (2 / size) ** 0.5 * torch.cos(math.pi / size * torch.outer(torch.arange(NUM_CEPSTRA), places))


def _modulation(mel: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Return the log power of band envelopes per octave of modulation rate; silence if none fits."""
    groups = torch.stack([part.mean(1) for part in mel.tensor_split(MODULATION_GROUPS, dim=1)], 1)
    window = torch.hann_window(len(mel), periodic=False)[:, None]
    power = torch.fft.rfft((groups - groups.mean(0)) * window, dim=0).abs() ** 2 / len(mel)
    rates = torch.fft.rfftfreq(len(mel), 1 / frame_rate)
    rows = []
    for low, high in pairwise(MODULATION_EDGES_HZ):
        inside = (rates >= low) & (rates < high)
        rows.append(power[inside].sum(0) / inside.sum().clamp(min=1))
    return torch.log(torch.stack(rows) + 1e-5).flatten()
