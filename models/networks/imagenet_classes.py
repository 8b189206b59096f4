"""The names of ImageNet's 1,000 classes: a generic list of words for objects in images.

The list was made for no data set of sounds. Some classes make sounds (accordion, harp); an evaluation on
these must say so.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

FOLDER = "data/_info"  # in timm: WordNet's words for the classes


def class_names() -> list[str]:
    """Return one name of each class, in the classes' order."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return list(_IMAGENET_CATEGORIES)


@cache
def synonyms() -> list[tuple[str, ...]]:
    """Return all names of each class, the one of `class_names` first: ("marimba", "xylophone").

    Read from timm's files, without importing it.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the synonyms of ImageNet's classes are in timm, which is not installed")
    folder = Path(spec.origin).parent / FOLDER
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    return [
        tuple(dict.fromkeys((name, *words[synset].split(", "))))
        for name, synset in zip(class_names(), synsets, strict=True)
    ]
