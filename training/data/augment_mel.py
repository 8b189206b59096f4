"""Vary training clips on their log-mels, many at once on any device, and measure attributes there."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.audio.attributes import ONSET_DB, ONSET_GAP
from models.audio.mel import LOG_FLOOR, MelSpectrogram

DB = 20 / math.log(10)  # dB per unit of a log-mel
TILT_HZ = 1000.0  # frequency that a tilt does not change
PULSE_DB = 18.0  # fall of a sound until its next pulse begins
SOUNDING_DB = 40.0  # frames further below the loudest count as silent
RANGE_DB = 60.0  # range of levels in which a rise counts


class MelVariants(nn.Module):
    """Make sounds brighter, noisier or denser on their log-mels, and measure these attributes."""

    def __init__(self, mel: MelSpectrogram) -> None:
        super().__init__()
        filters = mel.filters.cpu()
        centres = mel.centres.cpu().clamp(min=1.0)
        widths = 1 / filters.amax(0)  # the filters have equal areas
        self.frame_rate = mel.frame_rate
        self.centres = nn.Buffer(centres)  # (M,) Hz
        self.shares = nn.Buffer(widths / widths.sum())  # (M,) share of the spectrum's bins
        self.octaves = nn.Buffer((centres / TILT_HZ).log2().clamp(min=-3.0))  # (M,)

    def tilted(self, log_mel: torch.Tensor, tilts: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) tilted by (B,) dB per octave; silence stays silent."""
        change = tilts[:, None, None] * self.octaves / DB
        return torch.where(log_mel > LOG_FLOOR, (log_mel + change).clamp(min=LOG_FLOOR), log_mel)

    def contrasted(self, log_mel: torch.Tensor, contrasts: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) with bands (B,) times as far below the loudest one; less is noisier."""
        loudest = log_mel.amax(-1, keepdim=True)
        changed = loudest - contrasts[:, None, None] * (loudest - log_mel)
        return torch.where(log_mel > LOG_FLOOR, changed.clamp(min=LOG_FLOOR), log_mel)

    def paced(self, log_mel: torch.Tensor, paces: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) played (B,) times as fast at their own pitch, in a loop."""
        size = log_mel.shape[1]
        position = torch.arange(size, device=log_mel.device) * paces[:, None] % size
        whole = position.floor()
        at, share = whole.long().clamp(max=size - 1), (position - whole)[..., None]
        first, second = (
            x.gather(1, i[..., None].expand(-1, -1, log_mel.shape[2]))
            for x, i in ((log_mel, at), (log_mel, (at + 1).clamp(max=size - 1)))
        )
        return torch.lerp(first, second, share)

    def pulsed(self, log_mel: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) that fall by `PULSE_DB` and restart (B,) times per second."""
        passed = torch.arange(log_mel.shape[1], device=log_mel.device) * rates[:, None] / self.frame_rate % 1
        return (log_mel - PULSE_DB / DB * passed[..., None]).clamp(min=LOG_FLOOR)

    def brightness(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the log centroid in Hz (B,) of log-mels (B, F, M)."""
        power = (2 * log_mel).exp().mean(1) * self.shares
        return ((power @ self.centres) / power.sum(-1)).log()

    def noisiness(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the log of the median flatness (B,) over frames of (B, F, M) that are not silent."""
        loudness = ((2 * log_mel).exp() @ self.shares).log()  # (B, F)
        flatness = 2 * log_mel @ self.shares - loudness
        sounding = loudness > loudness.amax(1, keepdim=True) - 2 * SOUNDING_DB / DB
        return torch.where(sounding, flatness, math.nan).nanmedian(1).values

    def density(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the onsets per second (B,) of log-mels (B, F, M): peaks of the mean rise in three frames."""
        level = DB * log_mel
        level = level.clamp(min=level.amax((1, 2), keepdim=True) - RANGE_DB)
        rise = F.relu(level[:, 3:] - level[:, :-3]) @ self.shares  # (B, F - 3)
        peak = F.max_pool1d(rise[:, None], 2 * ONSET_GAP + 1, 1, ONSET_GAP)[:, 0]
        return ((rise == peak) & (rise >= ONSET_DB)).sum(1) * self.frame_rate / log_mel.shape[1]
