"""Variants of training clips that are made on their log-mels, many at a time on any device, and what of a sound's attributes a log-mel shows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.audio.attributes import ONSET_DB, ONSET_GAP
from models.audio.mel import LOG_FLOOR, MelSpectrogram

DB = 20 / math.log(10)  # of a step of 1 on a log-mel
TILT_HZ = 1000.0  # frequency that a tilt leaves as it is
PULSE_DB = 18.0  # by which a sound has fallen when its next pulse begins
SOUNDING_DB = 40.0  # frames further below the loudest are not sounding
RANGE_DB = 60.0  # of the levels between which a rise is counted


class MelVariants(nn.Module):
    """Sounds made brighter, noisier or busier on their log-mels, and how bright, noisy and busy they are by them."""

    def __init__(self, mel: MelSpectrogram) -> None:
        super().__init__()
        filters = mel.filters.cpu()
        centres = mel.centres.cpu().clamp(min=1.0)
        widths = 1 / filters.amax(0)  # a band's filter has an area of its own, all the same
        self.frame_rate = mel.frame_rate
        self.centres = nn.Buffer(centres)  # (M,) Hz
        self.shares = nn.Buffer(widths / widths.sum())  # (M,) of the spectrum's bins
        self.octaves = nn.Buffer((centres / TILT_HZ).log2().clamp(min=-3.0))  # (M,)

    # ------------------------------------------------------------------------------------------------ variants

    def tilted(self, log_mel: torch.Tensor, tilts: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) with spectra tilted by (B,) dB per octave: brighter, or duller. What is silent stays so."""
        change = tilts[:, None, None] * self.octaves / DB
        return torch.where(log_mel > LOG_FLOOR, (log_mel + change).clamp(min=LOG_FLOOR), log_mel)

    def contrasted(self, log_mel: torch.Tensor, contrasts: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) whose bands lie (B,) times as far below each frame's loudest one: less is noisier, more is cleaner."""
        loudest = log_mel.amax(-1, keepdim=True)
        changed = loudest - contrasts[:, None, None] * (loudest - log_mel)
        return torch.where(log_mel > LOG_FLOOR, changed.clamp(min=LOG_FLOOR), log_mel)

    def paced(self, log_mel: torch.Tensor, paces: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) that go (B,) times as fast at their pitch; from their beginning again after their end."""
        size = log_mel.shape[1]
        places = torch.arange(size, device=log_mel.device) * paces[:, None] % size
        whole = places.floor()
        at, share = whole.long().clamp(max=size - 1), (places - whole)[..., None]
        first, second = (
            x.gather(1, i[..., None].expand(-1, -1, log_mel.shape[2]))
            for x, i in ((log_mel, at), (log_mel, (at + 1).clamp(max=size - 1)))
        )
        return torch.lerp(first, second, share)

    def pulsed(self, log_mel: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) that fall by `PULSE_DB` and start again (B,) times per second."""
        passed = torch.arange(log_mel.shape[1], device=log_mel.device) * rates[:, None] / self.frame_rate % 1
        return (log_mel - PULSE_DB / DB * passed[..., None]).clamp(min=LOG_FLOOR)

    # ----------------------------------------------------------------------------------------------- attributes

    def brightness(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the centroid in Hz (B,) of log-mels (B, F, M)."""
        power = (2 * log_mel).exp().mean(1) * self.shares
        return ((power @ self.centres) / power.sum(-1)).log()

    def noisiness(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the median spectral flatness (B,) of the sounding frames of log-mels (B, F, M)."""
        loudness = ((2 * log_mel).exp() @ self.shares).log()  # (B, F)
        flatness = 2 * log_mel @ self.shares - loudness
        sounding = loudness > loudness.amax(1, keepdim=True) - 2 * SOUNDING_DB / DB
        return torch.where(sounding, flatness, math.nan).nanmedian(1).values

    def density(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the onsets per second (B,) of log-mels (B, F, M): peaks of the mean rise over three frames."""
        level = DB * log_mel
        level = level.clamp(min=level.amax((1, 2), keepdim=True) - RANGE_DB)
        rise = F.relu(level[:, 3:] - level[:, :-3]) @ self.shares  # (B, F - 3)
        peak = F.max_pool1d(rise[:, None], 2 * ONSET_GAP + 1, 1, ONSET_GAP)[:, 0]
        return ((rise == peak) & (rise >= ONSET_DB)).sum(1) * self.frame_rate / log_mel.shape[1]
