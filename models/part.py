"""Base of the parts of a bundle that have a configuration but no weights of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin


class ConfigOnlyPart(ModelMixin, ConfigMixin):
    """A part saved as `config.json` alone; its tensors are computed, or come from an installed package."""

    config_name = "config.json"

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_config(folder)

    @classmethod
    def read_config(cls, folder: str | Path) -> dict[str, Any]:
        """Return the constructor's arguments that `save_pretrained` wrote."""
        config = json.loads((Path(folder) / cls.config_name).read_text())
        return {k: v for k, v in config.items() if not k.startswith("_")}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **_: Any) -> Self:
        return cls(**cls.read_config(pretrained_model_name_or_path))
