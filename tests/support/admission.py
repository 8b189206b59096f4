"""A service with a queue limit, and the cost of its model."""

from __future__ import annotations

from clipsynth.schemas.model_info import ModelCost

COST = ModelCost(audio_step_s=0.1, step_s=0.01, guided_share=0.5)


REQUEST_S = 4 * 2 * 1.5 * 0.1  # of the request that Service.post sends, by COST
