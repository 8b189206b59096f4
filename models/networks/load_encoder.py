"""Load an encoder from its folder."""

from __future__ import annotations

import json
from pathlib import Path

from models.networks.encoder import JointEncoder
from models.networks.multilingual import MultilingualEncoder
from models.networks.open_clip import OpenClipEncoder
from models.networks.packaged import PackagedEncoder


def load_encoder(folder: str | Path) -> JointEncoder:
    """Load an encoder folder; its `config.json` names the class.

    Raises:
        ValueError: the folder holds no known encoder, or its weights are missing.
    """
    path = Path(folder) / JointEncoder.config_name
    if not path.is_file():
        raise ValueError(f"encoder: {folder} holds no {path.name}")
    class_name = json.loads(path.read_text()).get("_class_name")
    for cls in (PackagedEncoder, OpenClipEncoder, MultilingualEncoder):
        if cls.__name__ == class_name:
            return cls.from_pretrained(folder)
    raise ValueError(f"encoder: {path} names the unknown class {class_name!r}")
