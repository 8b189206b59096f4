"""Idempotency keys: repeating a request with the same key returns the same generation.

Admission binds a key together with the place in the queue, so a refused request binds none.
"""

from __future__ import annotations

import hashlib

from clipsynth.admission.limits import Claim
from clipsynth.errors import IdempotencyMismatch
from clipsynth.redis_keys import IDEMPOTENCY


def claim(*, owner: str, key: str, fingerprint: str, generation_id: str) -> Claim:
    """Return what binds an owner's idempotency key to a request and its generation."""
    name = f"{IDEMPOTENCY}{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
    return Claim(name, f"{fingerprint} {generation_id}")


def bound_id(bound: bytes, claim: Claim) -> str:
    """Return the id of the generation that a key is bound to.

    Raises:
        IdempotencyMismatch: the key is bound to another request.
    """
    known_fingerprint, known_id = bound.decode().split()
    if known_fingerprint != claim.value.split()[0]:
        raise IdempotencyMismatch("this Idempotency-Key was used for another request")
    return known_id
