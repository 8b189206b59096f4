"""A file of weights as Wav2CLIP publishes it."""

from __future__ import annotations

import torch

from models.baselines.wav2clip import N_FFT, PREFIXES


def published(model):
    """Return a record like the file of Wav2CLIP: its names, and its unused weights."""
    state = {}
    for name, value in model.state_dict().items():
        theirs, ours = next((theirs, ours) for theirs, ours in PREFIXES.items() if name.startswith(ours))
        state[theirs + name.removeprefix(ours)] = value
    state["audio_encoder.fc.weight"] = torch.zeros(1000, 512)
    state["audio_encoder.fc.bias"] = torch.zeros(1000)
    state["audio_encoder.spectrogram.window"] = torch.hann_window(N_FFT)
    state["image_encoder.proj"] = torch.zeros(3)
    return {"state_dict": state, "epoch": 3}
