"""YAMNet, a MobileNet trained on AudioSet (Google), from a local `.tflite` file.

Its distances and its linear judge notice unnatural sounds that the judge misses.

    clipsynth evaluate … --embedder yamnet:FILE

Needs `ai-edge-litert` (extra `yamnet`). The file's network takes 0.975 s of sound at 16 kHz and scores 521
classes; the embedding is its global average pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.audio import fingerprint
from models.bundle import file_sha256

HOP_S = 0.48
LEVEL = 0.1  # RMS of every sound before it is embedded


class YamNet:
    """Embeddings (N, F, D) of windows that start every 0.48 s."""

    name = "yamnet"
    judges = True

    def __init__(self, file: Path, dim: int = 1024) -> None:
        """Load the network.

        Args:
            dim: size of the embedding; the network's last tensor of this size is used.

        Raises:
            ValueError: the file is missing or no network of sounds, or the runtime is not installed.
        """
        if not file.is_file():
            raise ValueError(f"yamnet: there is no file {file}")
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError as error:
            raise ValueError("yamnet: install its runtime: pip install clipsynth[yamnet]") from error
        try:
            # The embedding is not an output, so all tensors must be kept; the runtime warns about that.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._network = Interpreter(str(file), num_threads=1, experimental_preserve_all_tensors=True)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"yamnet: {file} is not a TFLite network: {error}") from error
        self._network.allocate_tensors()
        self._input = self._network.get_input_details()[0]
        shape = tuple(self._input["shape"])
        pooled = [
            tensor["index"]
            for tensor in self._network.get_tensor_details()
            if tuple(tensor["shape"]) in {(1, dim), (1, 1, 1, dim)} and not tensor["name"].endswith("/bias")
        ]
        if not pooled or shape[:-1] not in {(), (1,)}:
            raise ValueError(f"yamnet: {file} has an input {shape} and {len(pooled)} tensors of {dim} values")
        self._embedding, self.window = pooled[-1], int(shape[-1])
        self.version = fingerprint(file_sha256(file), dim, LEVEL)

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self._embed_one(waveform) for waveform in waveforms])

    def _embed_one(self, waveform: np.ndarray) -> np.ndarray:
        rms = float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))
        sound = (waveform * (LEVEL / max(rms, 1e-6))).clip(-1, 1).astype(np.float32)
        sound = np.pad(sound, (0, max(0, self.window - len(sound))))
        hop = round(HOP_S * 16000)
        found = []
        for start in range(0, len(sound) - self.window + 1, hop):
            part = sound[start : start + self.window].reshape(self._input["shape"])
            self._network.set_tensor(self._input["index"], part)
            self._network.invoke()
            found.append(self._network.get_tensor(self._embedding).reshape(-1).copy())
        return np.stack(found)
