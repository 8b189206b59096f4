"""Class accuracy: how often the judge hears the class that a query asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_phrases(path: Path) -> dict[str, list[str]]:
    """Return {label: phrases} of a JSON file {"classes": {label: [phrase, …]}}.

    Raises:
        ValueError: the file has another form, or a class has no phrase.
    """
    try:
        classes = json.loads(path.read_text())["classes"]
        found = {str(label): [str(phrase) for phrase in phrases] for label, phrases in classes.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        form = '{"classes": {label: [phrase, …]}}'
        raise ValueError(f"{path} is not of the form {form}: {error!r}") from error
    for label, phrases in found.items():
        if not phrases:
            raise ValueError(f"{path} has no phrase for the class {label!r}")
    return found


def hits(probabilities: np.ndarray, labels: Sequence[str], wanted: Sequence[str], k: int = 1) -> np.ndarray:
    """Return (N,): 1 if the wanted class is among the judge's `k` most probable, else 0.

    Args:
        probabilities: (N, C) of the C classes `labels`.
        wanted: the class of each of the N queries.

    Raises:
        ValueError: the shapes do not match, N is 0, or the judge does not know a class.
    """
    probable = wanted_probability(probabilities, labels, wanted)
    return np.asarray((probabilities > probable[:, None]).sum(1) < k, float)


def wanted_probability(probabilities: np.ndarray, labels: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return (N,): the judge's probability of the wanted class; arguments and errors as `hits`."""
    if not len(wanted) or probabilities.shape != (len(wanted), len(labels)):
        raise ValueError(
            f"need probabilities of {len(labels)} classes for each of {len(wanted)} queries, "
            f"got {probabilities.shape}"
        )
    if unknown := sorted(set(wanted) - set(labels)):
        raise ValueError(f"the judge does not know the class {unknown[0]!r}")
    index = [list(labels).index(label) for label in wanted]
    return np.asarray(probabilities[np.arange(len(wanted)), index], float)


def per_class(values: Sequence[float] | np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Return the mean of `values` for each class; value n belongs to class `labels[n]`."""
    found, classes = np.asarray(values, float), np.asarray(labels)
    return {label: float(found[classes == label].mean()) for label in sorted(set(labels))}
