"""CLAP (Wu et al. 2023) from a local folder, as transformers saves it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.audio import fingerprint, resample
from evaluation.interfaces import SAMPLE_RATE
from models.bundle import file_sha256


class Clap:
    """`transformers.ClapModel` with its processor: one embedding per sound, and texts in the same space."""

    name = "clap"

    def __init__(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ValueError(
                f"clap: {folder} holds no {weights.name}; give a folder of transformers.ClapModel"
            )
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        try:
            self.model = ClapModel.from_pretrained(folder, local_files_only=True).eval()
            self.features = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"clap: {folder} cannot be loaded: {error}") from error
        self.version = fingerprint(file_sha256(weights))

    @torch.no_grad()
    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        rate = self.features.sampling_rate
        sounds = [resample(w, SAMPLE_RATE, rate) for w in waveforms]
        inputs = self.features(sounds, sampling_rate=rate, return_tensors="pt")
        # If no sound of a batch is long, the extractor marks a random one as long, and a fused network would
        # embed it differently.
        inputs["is_longer"] = torch.tensor([[len(s) > self.features.nb_max_samples] for s in sounds])
        return self._array(self.model.get_audio_features(**inputs))[:, None]

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self._array(self.model.get_text_features(**tokens))

    @staticmethod
    def _array(output: Any) -> np.ndarray:
        """Return (N, D) of the model's output, which is a tensor or holds one."""
        tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
        return np.asarray(tensor.float().numpy())
