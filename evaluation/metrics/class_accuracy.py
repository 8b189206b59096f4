"""Class agreement: how often a judge hears in a sound the class that was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_phrases(path: Path) -> dict[str, list[str]]:
    """Return {label: phrases} of a JSON file {"classes": {label: [phrase, …]}}.

    Raises:
        ValueError: not such a file.
    """
    try:
        classes = json.loads(path.read_text())["classes"]
        found = {str(label): [str(phrase) for phrase in phrases] for label, phrases in classes.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is not of the form {{"classes": {{label: [phrase, …]}}}}: {error!r}'
        ) from error
    for label, phrases in found.items():
        if not phrases:
            raise ValueError(f"{path} has no phrase for the class {label!r}")
    return found


def hits(probabilities: np.ndarray, labels: Sequence[str], asked: Sequence[str], k: int = 1) -> np.ndarray:
    """Return (N,) of 1 where the class asked for is among the judge's `k` most probable, else 0.

    Args:
        probabilities: (N, C), C classes `labels`.

    Raises:
        ValueError: as many rows as queries are needed, and at least one; a class the judge does not know.
    """
    place = _places(probabilities, labels, asked)
    rank = (probabilities > probabilities[np.arange(len(place)), place][:, None]).sum(1)
    return np.asarray(rank < k, float)


def asked_probability(probabilities: np.ndarray, labels: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    """Return (N,) how probable the judge finds the class that was asked for; errors as `hits`."""
    return np.asarray(
        probabilities[np.arange(len(probabilities)), _places(probabilities, labels, asked)], float
    )


def _places(probabilities: np.ndarray, labels: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    if not len(asked) or probabilities.shape != (len(asked), len(labels)):
        raise ValueError(
            f"need probabilities of {len(labels)} classes for each of {len(asked)} queries, got {probabilities.shape}"
        )
    unknown = sorted(set(asked) - set(labels))
    if unknown:
        raise ValueError(f"the judge knows no class {unknown[0]!r}")
    return np.array([list(labels).index(a) for a in asked])


def per_class(values: Sequence[float] | np.ndarray, asked: Sequence[str]) -> dict[str, float]:
    """Return the mean of `values` for each class asked for."""
    found, classes = np.asarray(values, float), np.asarray(asked)
    return {label: float(found[classes == label].mean()) for label in sorted(set(asked))}
