"""Loaded by schemathesis: lets its filters pass files, whose bytes no JSON validator reads.

Without it, schemathesis 4.32.5 ends with "Unsupported type: 'Binary'" at some bodies of a form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from schemathesis.generation.jsonschema import strategy
from schemathesis.transport.serialization import contains_binary

_validator = strategy._validator


def _passes_files(schema: Any) -> Callable[[Any], bool]:
    is_valid = _validator(schema)
    return lambda value: contains_binary(value) or is_valid(value)


strategy._validator = _passes_files  # type: ignore[assignment]
