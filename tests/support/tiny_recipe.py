"""A recipe at toy size."""

from pathlib import Path

from training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo.yaml"
TINY = [
    "distil.steps=2",
    "vocoder.architecture=hifigan",
    "vocoder.batch_size=2",
    "vocoder.finetune_steps=0",
    "vocoder.upsample_initial_channel=32",
    "vocoder.segment_frames=20",
    "denoiser.batch_size=2",
    "denoiser.dim=32",
    "denoiser.depth=1",
    "denoiser.heads=2",
    "denoiser.max_frames=160",
    "in_memory=false",
    "denoiser.dropout=0.0",
    "denoiser.decay_share=0.0",  # a run that is prolonged must not have decayed
]


def recipe(prepared, run, steps, *overrides):
    return load_recipe(
        DEMO,
        [
            f"clips={prepared}",
            f"run={run}",
            f"vocoder.steps={steps}",
            f"denoiser.steps={steps}",
            *TINY,
            *overrides,
        ],
    )
