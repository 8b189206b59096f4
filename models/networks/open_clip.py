"""The production encoder: any CLIP of open_clip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from PIL import Image

from models.networks.encoder import JointEncoder


class OpenClipEncoder(JointEncoder):
    """Any CLIP of open_clip, from a local weight file or a hub tag. Weights are random only with "random"."""

    @register_to_config
    def __init__(
        self, model_name: str = "ViT-B-32", pretrained: str = "", architecture: dict[str, Any] | None = None
    ) -> None:
        """Build the model and load its weights.

        Args:
            model_name: a name that open_clip knows; with `architecture` any name.
            pretrained: a weight file, a tag of `open_clip.list_pretrained()` (asks the hub), or "random" (for
                tests, each time the same).
            architecture: open_clip's model configuration, for names that it does not know. Kept in the
                bundle.

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
        try:
            with torch.random.fork_rng(devices=[]):
                # Random weights must be the same in each process that opens the folder.
                torch.manual_seed(0)
                made = open_clip.create_model_and_transforms(model_name, pretrained=weights)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"encoder: {pretrained} cannot be loaded as weights of {model_name} ({reason}); "
                "it is damaged or of another model"
            ) from error
        self.model, _, self.preprocess = made
        self.tokenizer = open_clip.get_tokenizer(model_name)
        self.register_to_config(architecture=open_clip.get_model_config(model_name))
        self._weight_file = source if source.is_file() else None
        self.requires_grad_(False).eval()

    @property
    def embed_dim(self) -> int:
        return int(self.config.architecture["embed_dim"])

    def cuts_off(self, text: str) -> bool:
        # A row without padding is full.
        return bool((self.tokenizer([text])[0] != 0).all())

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=-1)

    def pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([self.preprocess(image.convert("RGB")) for image in images])

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.model.encode_image(pixels.to(self.device, self.dtype)).float(), dim=-1)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write `config.json` and a copy of the weight file, if there is one."""
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


def _register_architecture(model_name: str, architecture: dict[str, Any]) -> None:
    """Register a model configuration with open_clip, which reads them only from files."""
    import tempfile

    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{model_name}.json"
        file.write_text(json.dumps(architecture))
        open_clip.add_model_config(file)
