"""Names of Redis keys that several rooms use."""

from __future__ import annotations

RECORD_PREFIX = "clipsynth:gen:"  # hash of a generation, before its id
