"""Bounds and toy sizes that several tests share."""

from __future__ import annotations

# Largest difference, of full scale, of a sound alone and batched with others. An untrained network's mels are
# full of tones, which amplify rounding; a trained one stays within 2e-3.
BATCHED_TOLERANCE = 1e-2


TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"width": 32, "layers": 1, "image_size": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 32, "layers": 1, "context_length": 77, "vocab_size": 49408, "heads": 2},
}
