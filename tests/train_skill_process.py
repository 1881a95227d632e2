"""One of several processes that a test starts: goes on with a training of random plans in a given run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from ksgen_core.keysteps.skill_transformer import SkillTransformer, SkillTransformerConfig
from ksgen_core.training.encoded_plans import EncodedPlans
from ksgen_core.training.loop import Recipe
from ksgen_core.training.skill_stage import train_skill_transformer

CONFIG = SkillTransformerConfig(
    token_width=8, text_width=6, tokens_per_image=4, max_images=5, width=32, layers=2, heads=2, ff_width=64
)
RECIPE = Recipe(iterations=30, batch=5, rate=3e-3, warm_up=5, ema=0.9, clip=0.25)


def plans(lengths=(2, 3, 5, 4), seed=0):
    """Random tokens, and texts of different lengths."""
    chance = torch.Generator().manual_seed(seed)
    images = [torch.randn(n, 4, 8, generator=chance) for n in lengths]
    texts = [torch.randn(2 + u, 6, generator=chance) for u in range(6)]
    text_of = [[(i + k) % 6 for k in range(n)] for i, n in enumerate(lengths)]
    return EncodedPlans(images, texts, text_of, torch.randn(4, 8, generator=chance), "seen")


def skill(seed=1):
    torch.manual_seed(seed)
    model = SkillTransformer(CONFIG)
    torch.nn.init.normal_(model.to_tokens.weight, std=0.2)
    return model


def train(run, model, accelerator=None):
    """All that is left of the training in `run` -> numbers and losses of its reports."""
    events = train_skill_transformer(
        model, plans(), run, RECIPE, precision=torch.float32, accelerator=accelerator, report=1, keep=5
    )
    return {progress.iteration: progress.losses["loss"] for progress in events}


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    # Only what is read from the state can make this one equal to the one that began.
    model = skill(seed=50 + accelerator.process_index)
    losses = train(Path(sys.argv[1]), model, accelerator)
    torch.save({"losses": losses, "model": model.state_dict()}, f"{sys.argv[2]}.{accelerator.process_index}")
