"""The module path that saved SpecVQGAN pipelines record. Frozen, as `models.parts` is."""

from models.baselines.specvqgan import *  # noqa: F403
