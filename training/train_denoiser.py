"""Train the denoiser: rectified flow on mel tokens, conditioned on the embeddings of a clip's own frames.

Loss: |v(x_t, t, c) - (data - noise)|^2, x_t = (1 - t) noise + t data (Liu et al. 2022, eq. 1), t logit-normal (Esser et al. 2024, 3.1).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel

from models.condition_encoder import KINDS, ConditionEncoder, ConditionTokens
from models.denoiser import Denoiser
from training.data import Clips, ClipSet, crop, random_start
from training.loop import cpu_computes_bf16, load_state, load_weights, run_steps, save_state
from training.recipe import DenoiserRecipe, Recipe

LOG_FLOOR = math.log(1e-5)  # the mel of digital silence


def build_denoiser(recipe: Recipe, clips: ClipSet) -> tuple[ConditionEncoder, Denoiser]:
    """Return untrained parts whose statistics are those of the training clips."""
    embed_dim, n_mels = len(clips.image_mean), len(clips.mel_mean)
    stride = -(-len(clips.train) // recipe.max_bank_size)
    bank = torch.stack([clips.train.embeds(i).mean(0) for i in range(0, len(clips.train), stride)])
    condition_encoder = ConditionEncoder(
        embed_dim=embed_dim,
        text_sigma=recipe.text_sigma,
        bank_size=len(bank),
        bank_share=recipe.bank_share,
        bank_tau=recipe.bank_tau,
    )
    condition_encoder.means[KINDS.index("image")] = clips.image_mean
    condition_encoder.means[KINDS.index("text")] = clips.text_mean
    condition_encoder.bank.copy_(condition_encoder.centre(bank, "image"))
    d = recipe.denoiser
    denoiser = Denoiser(
        dim=d.dim,
        depth=d.depth,
        heads=d.heads,
        dropout=d.dropout,
        condition_dim=embed_dim,
        n_mels=n_mels,
        frames_per_token=d.frames_per_token,
        prediction=d.prediction,
    )
    denoiser.mel_mean.copy_(clips.mel_mean)
    denoiser.mel_std.copy_(clips.mel_std)
    return condition_encoder, denoiser


def flow_loss(
    denoiser: Denoiser, data: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, conditions: ConditionTokens
) -> torch.Tensor:
    """Return the mean squared error of the velocity at times t (B,) for tokens `data` and `noise` (B, L, C)."""
    x_t = torch.lerp(noise, data, t[:, None, None])
    return F.mse_loss(denoiser(x_t, t, conditions).float(), data - noise)


class Batches:
    """Draws training batches; batch n depends on (seed, n) alone, so that a resumed run sees the same ones."""

    def __init__(self, clips: Clips, recipe: Recipe) -> None:
        self.clips, self.recipe = clips, recipe

    def draw(
        self, n: int, condition_encoder: ConditionEncoder, denoiser: Denoiser
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ConditionTokens]:
        """Return data (B, L, C), noise, t (B,) and conditions: one or two frames of the clip, noised, dropped with `cond_dropout_prob`."""
        d = self.recipe.denoiser
        g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
        epoch, offset = divmod(n * d.batch_size, len(self.clips))
        order = torch.cat(
            [
                torch.randperm(
                    len(self.clips), generator=torch.Generator().manual_seed(self.recipe.seed + epoch + e)
                )
                for e in (0, 1)
            ]
        )
        repeated = order.repeat(1 + d.batch_size // len(order))[offset : offset + d.batch_size]
        chosen = [int(i) % len(self.clips) for i in repeated]
        per_token = denoiser.config.frames_per_token
        frames = per_token * int(
            torch.randint(d.min_frames // per_token, d.max_frames // per_token + 1, (), generator=g)
        )
        mels = []
        for mel in map(self.clips.mel, chosen):
            start = random_start(len(mel), frames, g)
            mels.append(crop(mel - LOG_FLOOR, frames, start) + LOG_FLOOR)  # silence after a clip's end
        data = denoiser.to_tokens(torch.stack(mels))

        all_embeds = [self.clips.embeds(i) for i in chosen]
        frame = torch.stack([torch.randint(len(e), (2,), generator=g) for e in all_embeds])  # (B, 2)
        embeds = torch.stack([e[k] for e, k in zip(all_embeds, frame, strict=True)])
        centred = condition_encoder.centre(embeds.flatten(0, 1), "image").view_as(embeds)
        sigma = d.max_sigma * torch.rand(len(chosen), 2, generator=g)
        sigma[torch.rand(sigma.shape, generator=g) < 0.25] = 0.0
        noised = (
            centred + sigma[..., None] * torch.randn(centred.shape, generator=g) / centred.shape[-1] ** 0.5
        )
        kept = torch.rand(len(chosen), generator=g) >= d.cond_dropout_prob
        two = torch.rand(len(chosen), generator=g) < 0.2
        conditions = condition_encoder(
            F.normalize(noised, dim=-1), torch.ones_like(sigma), sigma, torch.stack([kept, kept & two], dim=1)
        )
        t = torch.sigmoid(torch.randn(len(chosen), generator=g))
        return data, torch.randn(data.shape, generator=g), t, conditions


def dev_loss(clips: Clips, condition_encoder: ConditionEncoder, denoiser: Denoiser) -> float:
    """Return the flow loss on held-out clips at a fixed grid of (t, noise): 4 s, middle frame, t in {1/8 … 7/8}."""
    g = torch.Generator().manual_seed(0)
    frames = 400
    losses = []
    with (
        torch.no_grad()
    ):  # not inference mode: the network caches its rotary table, which training then needs
        for i in range(0, len(clips), 32):
            part = range(i, min(i + 32, len(clips)))
            mels = [crop(clips.mel(k) - LOG_FLOOR, frames, 0) + LOG_FLOOR for k in part]
            data = denoiser.to_tokens(torch.stack(mels))
            embeds = condition_encoder.centre(
                torch.stack([clips.embeds(k)[len(clips.embeds(k)) // 2] for k in part]), "image"
            )[:, None]
            ones = torch.ones(len(part), 1)
            conditions = condition_encoder(embeds, ones, ones * 0, ones.bool())
            noise = torch.randn(
                len(part), frames, data.shape[-1] // denoiser.config.frames_per_token, generator=g
            ).view_as(data)
            losses += [
                flow_loss(denoiser, data, noise, torch.full((len(part),), k / 8), conditions) * len(part)
                for k in range(1, 8)
            ]
    return float(torch.stack(losses).sum()) / (7 * len(clips))


def build_optimizers(
    recipe: Recipe, condition_encoder: ConditionEncoder, denoiser: Denoiser
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that between them update every parameter once."""
    d = recipe.denoiser
    parameters = [*condition_encoder.parameters(), *denoiser.parameters()]
    matrices: list[torch.nn.Parameter] = []
    if d.optimizer == "muon":
        matrices = [p for p in denoiser.transformer.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=d.learning_rate, betas=(0.9, 0.95), weight_decay=d.weight_decay)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=d.learning_rate, weight_decay=d.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def learning_rate(d: DenoiserRecipe, n: int) -> float:
    """Return the learning rate of step n: warm-up, constant, linear decay over the last `decay_share` of the steps."""
    decay_steps = max(1.0, d.decay_share * d.steps)
    return d.learning_rate * min(1.0, (n + 1) / d.warmup_steps, (d.steps - n) / decay_steps)


def train_denoiser(
    recipe: Recipe, clips: ClipSet, init: tuple[ConditionEncoder, Denoiser] | None = None
) -> tuple[ConditionEncoder, Denoiser]:
    """Train or resume; return the parts with averaged weights (EMA).

    Args:
        init: trained parts to start from where there is no state to resume. Statistics of the clips (means, bank) are the new clips'
            where they are of the condition encoder; those of the mel stay as the denoiser knows them.

    Raises:
        ValueError: `init` is of another shape than the recipe's.
    """
    torch.manual_seed(recipe.seed)
    d = recipe.denoiser
    folder = Path(recipe.run) / "denoiser"
    condition_encoder, denoiser = build_denoiser(recipe, clips)
    if init is not None:
        load_weights("condition_encoder", condition_encoder.sigma_projection, init[0].sigma_projection)
        load_weights("denoiser", denoiser, init[1])
    both = torch.nn.ModuleList([condition_encoder, denoiser])
    optimizers = build_optimizers(recipe, condition_encoder, denoiser)
    ema = EMAModel(both.parameters(), decay=d.ema_decay, use_ema_warmup=True, power=0.75)
    batches = Batches(clips.train, recipe)
    first = 0
    state = load_state(folder / "state.pt")
    if state is not None:
        both.load_state_dict(state["weights"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        first = state["step"]
    bf16 = cpu_computes_bf16()

    def step(n: int) -> float:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(d, n)
        both.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = flow_loss(denoiser, *batches.draw(n, condition_encoder, denoiser))
        both.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        ema.step(both.parameters())
        return loss.item()

    def save(n: int) -> None:
        state = {
            "step": n,
            "weights": both.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "ema": ema.state_dict(),
            "rng": torch.get_rng_state(),
        }
        save_state(state, folder / "state.pt")
        ema.store(both.parameters())
        ema.copy_to(both.parameters())
        both.eval()
        with (folder / "dev.tsv").open("a") as log:
            log.write(f"{n}\t{dev_loss(clips.dev, condition_encoder, denoiser):.5f}\n")
        ema.restore(both.parameters())

    run_steps(
        "denoiser",
        first=first,
        last=d.steps,
        step=step,
        save=save,
        save_every_s=recipe.save_every_s,
        log_path=folder / "loss.tsv",
    )
    ema.copy_to(both.parameters())
    return condition_encoder.eval(), denoiser.eval()
