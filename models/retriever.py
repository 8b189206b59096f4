"""Retrieval instead of diffusion: play the training clips nearest to the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.audio.level import fade_ends, fit
from models.conditioning.prompts import Prompt
from models.networks.condition_encoder import KINDS
from models.pipeline import ClipSynthPipeline
from models.retrieval.clip_audio import ClipAudio
from models.retrieval.clip_index import Index


class Retrieval:
    """The training clips of a bundle, and their sounds.

    Embeddings are compared as the denoiser receives them: centred with the mean of their kind, because texts
    and images lie in separate cones.
    """

    def __init__(self, pipeline: ClipSynthPipeline, index: Index, audio: ClipAudio) -> None:
        """Join pipeline, index and sounds.

        Raises:
            ValueError: the sound of an indexed clip is missing; the message names it.
        """
        if (video := audio.missing(index)) is not None:
            raise ValueError(f"the sound of {video}, which the retrieval index names, is not there")
        self.pipeline, self.index, self.audio = pipeline, index, audio

    def nearest(self, prompts: Sequence[Prompt], k: int) -> list[int]:
        """Return the numbers of the k clips nearest to a set, nearest first.

        The query is the weighted sum of the set's centred embeddings; negative weights subtract. Distance is
        by cosine.

        Raises:
            ValueError: no positive weight, or the index has fewer than k clips.
        """
        if not any(prompt.weight > 0 for prompt in prompts):
            raise ValueError("a `prompt` of positive weight or an `image` is needed")
        if k > len(self.index.clips):
            raise ValueError(f"there are {len(self.index.clips)} training clips, asked for the {k} nearest")
        encoder = self.pipeline.condition_encoder
        with torch.inference_mode():
            wanted, unwanted = (
                encoder.total(self.pipeline.encode_conditions(prompts, sign)) for sign in (1, -1)
            )
            mean = encoder.means[KINDS.index("image")]
            numbers: list[int] = self.index.nearest((wanted - unwanted)[None], k, mean=mean)[0].tolist()
        return numbers

    def sound(self, number: int, duration_s: float) -> np.ndarray:
        """Return the first `duration_s` seconds (T,) of a clip, padded with silence.

        Raises:
            ValueError: its sound can no longer be read.
        """
        sample_rate = self.pipeline.manifest.sample_rate
        clip = self.audio.sound(self.index.clips[number])[: round(duration_s * sample_rate)]
        return fit(fade_ends(clip, sample_rate), duration_s, sample_rate)
