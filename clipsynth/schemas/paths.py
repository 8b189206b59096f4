"""Paths of routes in resources, for services behind a proxy that strips a prefix."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Annotated

from pydantic import PlainSerializer

# Set for each request (app/middleware/request_context.py); stored paths have no prefix.
PATH_PREFIX: ContextVar[str] = ContextVar("path_prefix", default="")
RoutePath = Annotated[str, PlainSerializer(lambda path: PATH_PREFIX.get() + path, return_type=str)]
