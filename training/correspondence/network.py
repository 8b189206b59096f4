"""Which sounds and images belong together, learned from the pairs themselves: a network on frozen features, and honest scores for its own training clips.

Two small networks bring a sound's features and an image's embedding to one space, where a clip's two sides should be nearer than two clips'
(symmetric InfoNCE, van den Oord et al. 2018, within batches). No label has a way in, nor does it know which pairs are wrong. A clip is scored by networks that were
trained without its video (cross-fitting), or a wrong pair would be learned by heart and look right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

NUM_CEPSTRA = 20
MODULATION_GROUPS = 16  # of neighbouring mel bands
MODULATION_EDGES_HZ = (0.1, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


@dataclass(frozen=True)
class MatchingOptions:
    """How the networks are trained. `noise` is in standard deviations of a feature."""

    folds: int = 5
    repeats: int = 2  # cross-fits with folds and weights of their own, of which the mean is taken
    hidden: int = 256
    dim: int = 64
    temperature: float = 0.2
    epochs: int = 24
    max_steps: int = 4000  # of one network, however many clips there are
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    dropout: float = 0.3
    noise: float = 1.0
    bank: int = 4096  # clips that a score compares with
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Clips as two standardised tables: `sounds` (N, S) and `images` (N, D), row i of clip i, and `videos` (N,) int, which video each is from."""

    sounds: torch.Tensor
    images: torch.Tensor
    videos: torch.Tensor

    def __len__(self) -> int:
        return len(self.videos)

    def at(self, rows: torch.Tensor) -> Pairs:
        return Pairs(self.sounds[rows], self.images[rows], self.videos[rows])


class Matcher(nn.Module):
    """Sound features (N, S) and image embeddings (N, D) to unit vectors (N, dim) of one space."""

    def __init__(self, sound_size: int, image_size: int, options: MatchingOptions) -> None:
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
        """Return symmetric InfoNCE; clips of one video are no negatives of each other."""
        sounds, images = self(pairs)
        logits = sounds @ images.T / self.temperature
        same = pairs.videos[:, None] == pairs.videos
        logits = logits.masked_fill(same.fill_diagonal_(False), -torch.inf)
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    @torch.inference_mode()
    def score(self, pairs: Pairs, bank: Pairs) -> torch.Tensor:
        """Return (N,): how much nearer the two sides of a clip are than either is to the other sides in `bank` (log of a soft mean)."""
        (sounds, images), (all_sounds, all_images) = self(pairs), self(bank)
        others = torch.logsumexp(sounds @ all_images.T / self.temperature, 1)
        others = others + torch.logsumexp(images @ all_sounds.T / self.temperature, 1)
        return (sounds * images).sum(1) / self.temperature - others / 2


def train_matcher(
    pairs: Pairs, options: MatchingOptions, generator: torch.Generator
) -> tuple[Matcher, float]:
    """Train on nine tenths of the videos; return the network of the epoch with the least InfoNCE on the last tenth, and that loss.

    The loss is given as the difference to chance: 0 has learned nothing, below is better.
    """
    held_out = _fold_of(pairs.videos, 10, generator) == 0
    train, check = pairs.at((~held_out).nonzero()[:, 0]), pairs.at(held_out.nonzero()[:, 0])
    check = check.at(torch.arange(min(len(check), 1024)))
    matcher = Matcher(pairs.sounds.shape[1], pairs.images.shape[1], options)
    size = min(options.batch_size, len(train))
    steps = min(options.max_steps, options.epochs * (len(train) // size))
    optimizer = torch.optim.AdamW(
        matcher.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    best, weights = torch.inf, matcher.state_dict()
    every = max(1, steps // options.epochs)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < size:
            order = torch.randperm(len(train), generator=generator)
        rows, order = order[:size], order[size:]
        optimizer.zero_grad()
        matcher.train().loss(train.at(rows)).backward()
        optimizer.step()
        schedule.step()
        if step % every == 0:
            with torch.inference_mode():
                loss = float(matcher.eval().loss(check)) - torch.tensor(float(len(check))).log().item()
            if loss < best:
                best, weights = loss, {name: value.clone() for name, value in matcher.state_dict().items()}
    matcher.load_state_dict(weights)
    return matcher.eval(), best


def cross_fit(
    pairs: Pairs, others: Pairs, options: MatchingOptions
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return scores of `pairs` (N,), each by networks that never saw its video, scores of `others` (M,) by all networks, and the mean
    held-out InfoNCE less chance.

    Each fold's scores are brought to mean 0 and deviation 1, for two networks' scales differ.

    Raises:
        ValueError: fewer than four videos per fold.
    """
    num_videos = len(pairs.videos.unique())
    if num_videos < 4 * options.folds:
        raise ValueError(
            f"agreement is learned from at least {4 * options.folds} videos, here are {num_videos}; with so few use Wav2CLIP"
        )
    ours, theirs, losses = torch.zeros(len(pairs)), torch.zeros(len(others)), []
    networks = options.folds * options.repeats
    for repeat in range(options.repeats):
        generator = torch.Generator().manual_seed(options.seed * 1009 + repeat)
        folds = _fold_of(pairs.videos, options.folds, generator)
        for fold in range(options.folds):
            held_out, rest = (folds == fold).nonzero()[:, 0], (folds != fold).nonzero()[:, 0]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                matcher, loss = train_matcher(pairs.at(rest), options, generator)
            bank = pairs.at(torch.randperm(len(pairs), generator=generator)[: options.bank])
            scores = matcher.score(pairs.at(held_out), bank)
            mean, std = scores.mean(), scores.std().clamp(min=1e-6)
            ours[held_out] += (scores - mean) / std / options.repeats
            theirs += (matcher.score(others, bank) - mean) / std / networks
            losses.append(loss)
    return ours, theirs, sum(losses) / len(losses)


def _fold_of(videos: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """Return (N,) which of `folds` parts of equally many videos, at random, a clip is in."""
    _, numbers = videos.unique(return_inverse=True)
    places = torch.randperm(int(numbers.max()) + 1, generator=generator)
    return places[numbers] % folds


def sound_features(mel: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Return what a log-mel (F, M), M >= 20, sounds like on the whole, (8 M + 227,) fp32.

    How loud and how changing each band is, quantiles over time, the spectrum where it is loudest and how jagged it is, the same of cepstra, and how
    much the envelopes of bands swing at which rate. Where in time something happens does not count.

    Args:
        frame_rate: mel frames per second, in Hz.
    """
    mel = mel.float()
    loudest = torch.softmax(2 * mel.mean(1), 0) @ mel
    quantiles = torch.quantile(mel, torch.tensor([0.1, 0.5, 0.9]), dim=0).flatten()
    jagged = mel.diff(dim=1).abs().mean(0)
    bands = [mel.mean(0), mel.std(0), mel.diff(dim=0).std(0), quantiles, loudest, jagged]
    cepstra = mel @ _cosines(mel.shape[1]).T  # (F, NUM_CEPSTRA)
    ends = torch.quantile(cepstra, torch.tensor([0.1, 0.9]), dim=0).flatten()
    timbre = [cepstra.mean(0), cepstra.std(0), (cepstra[2:] - cepstra[:-2]).std(0), ends]
    return torch.cat([*bands, *timbre, _modulation(mel, frame_rate)])


def _cosines(size: int) -> torch.Tensor:
    """Return the first rows of the DCT-II of `size` values, (NUM_CEPSTRA, size)."""
    places = torch.arange(size) + 0.5
    return (2 / size) ** 0.5 * torch.cos(math.pi / size * torch.outer(torch.arange(NUM_CEPSTRA), places))


def _modulation(mel: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Return the log power of band envelopes in octaves of modulation rate; a rate that a short clip cannot hold has the power of silence."""
    groups = torch.stack([part.mean(1) for part in mel.tensor_split(MODULATION_GROUPS, dim=1)], 1)
    window = torch.hann_window(len(mel), periodic=False)[:, None]
    power = torch.fft.rfft((groups - groups.mean(0)) * window, dim=0).abs() ** 2 / len(mel)
    rates = torch.fft.rfftfreq(len(mel), 1 / frame_rate)
    rows = []
    for low, high in pairwise(MODULATION_EDGES_HZ):
        inside = (rates >= low) & (rates < high)
        rows.append(power[inside].sum(0) / inside.sum().clamp(min=1))
    return torch.log(torch.stack(rows) + 1e-5).flatten()
