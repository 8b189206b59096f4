"""`python -m clipsynth.services.healthcheck URL`: exit 0 if the URL answers with 2xx."""

from __future__ import annotations

import sys
import urllib.request

TIMEOUT_S = 4

if __name__ == "__main__":
    try:
        urllib.request.urlopen(sys.argv[1], timeout=TIMEOUT_S).close()
    except OSError as error:
        raise SystemExit(f"{sys.argv[1]}: {error}") from None
