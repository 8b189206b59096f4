"""A recipe: all that made one sound, as a token that can be kept and replayed."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from clipsynth.errors import InvalidRequest
from clipsynth.schemas.request import Composition, Method, StoredPrompt


class ReplayToken(BaseModel):
    """The request that makes exactly this output, and what it was made with. `image_key` names an image in storage."""

    model_config = ConfigDict(extra="forbid")

    v: Literal[1] = 1
    model: str
    version: str
    prompt: str | None
    prompts: list[StoredPrompt] | None = None
    composition: Composition = "set"
    image_key: str | None
    image_sha256: str | None
    negative_prompt: str | None
    attributes: dict[str, float] = {}
    method: Method = "diffusion"
    rank: int = 0
    seed: int
    num_inference_steps: int
    guidance_scale: float
    duration_s: float
    dtype: str
    torch: str

    @field_validator("prompts")
    @classmethod
    def _sorted(cls, prompts: list[StoredPrompt] | None) -> list[StoredPrompt] | None:
        """A set has no order: equal sets are to have equal recipes."""
        return prompts and sorted(prompts, key=lambda prompt: prompt.place)

    def token(self) -> str:
        """Return the token: compact JSON in urlsafe base64."""
        return base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")

    @property
    def id(self) -> str:
        """16 hex digits: the same for the same sound, wherever its image is stored."""
        unsaid: dict[str, Any] = {"image_key": True, "prompts": {"__all__": {"image_key"}}}
        if not self.attributes:
            unsaid["attributes"] = True  # the id is what it was before there were any
        if self.method == "diffusion":  # as before there was a choice
            unsaid |= {"method": True, "rank": True}
        said = self.model_dump_json(exclude=unsaid)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @classmethod
    def read(cls, token: str) -> ReplayToken:
        """Return the recipe of a token.

        Raises:
            InvalidRequest: it is none.
        """
        try:
            text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            return cls.model_validate_json(text, strict=True)
        except (binascii.Error, ValidationError, ValueError):
            raise InvalidRequest("/recipe: not one that an output came with") from None
