"""Train the judges of the Tabletop benchmark on true renders: one reads states and colours, one reads the action."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints import write_atomically
from ..metrics.tabletop_judge import CLIP_FRAMES, Judge, JudgeConfig
from ..tabletop.instances import Instance, make
from ..tabletop.scene import COLOURS
from ..tabletop.skills import SKILLS
from ..tabletop.world import HEADS, KINDS
from .loop import Progress, Recipe, fit
from .pool import COLOURED, SHAPED, STEPS, build_pool, colours, facts, shapes, step_class

JUDGE_OUTPUTS = (
    *(1 + len(values) for _, _, values in HEADS),
    *(1 + len(COLOURS) for _ in COLOURED),
    *(1 + KINDS[name].shapes for name in SHAPED),
)
"""The heads of the state judge: facts, then colours, then shapes."""


def to_pictures(images: np.ndarray) -> Tensor:
    """uint8 [B, S, S, C] -> float [B, C, S, S] in 0..1.

    Contiguous: torch 2.13's float32 backward of a first convolution over permuted memory crashes on some CPUs.
    """
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous().float() / 255


def soften(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Three of four batches slightly blurred, scaled or noisy, so that the judge reads shapes and not pixels."""
    kind = int(torch.randint(4, (), generator=generator))
    if kind == 1:
        pictures = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    elif kind == 2:
        size = pictures.shape[-1]
        small = F.interpolate(pictures, scale_factor=0.5, mode="area")
        pictures = F.interpolate(small, size=(size, size), mode="bilinear")
    if kind:
        pictures = pictures + 0.03 * torch.randn(pictures.shape, generator=generator)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,), generator=generator))
    return torch.roll(pictures, (dy, dx), (2, 3)).clamp(0, 1)


def _fit(
    name: str,
    judge: Judge,
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    recipe: Recipe,
    run: Path,
    device: torch.device,
) -> Iterator[Progress]:
    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        pictures, labels = (t.to(device) for t in batch(generator))
        with torch.autocast(device.type, torch.bfloat16):
            logits = judge(pictures)
        return {"loss": torch.stack([F.cross_entropy(x.float(), labels[:, k]) for k, x in enumerate(logits)]).sum()}

    # Channels last: a third faster on processors.
    judge.to(device, memory_format=torch.channels_last).train()
    yield from fit(name, judge, losses_of, recipe, run)
    judge.to("cpu", memory_format=torch.contiguous_format).eval()
    judge.save(run / f"{name}.safetensors")


STATE_RECIPE = Recipe(iterations=9000, batch=48, rate=2e-3, decay=0.02, clip=10.0)
ACTION_RECIPE = Recipe(iterations=1200, batch=48, rate=2e-3, decay=0.02, clip=10.0)


def train_state_judge(
    run: Path, recipe: Recipe = STATE_RECIPE, device: str = "cpu", instances: int = 7000
) -> Iterator[Progress]:
    """Writes `<run>/state_judge.safetensors`."""
    pool = build_pool(run / "judge", ("judge",), range(instances), every_skill=True)
    labels = torch.from_numpy(np.concatenate([pool.facts, pool.colours, pool.shapes], 1)).long()

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (recipe.batch,), generator=generator)
        return soften(to_pictures(pool.images[np.sort(rows.numpy())]), generator), labels[rows.sort().values]

    torch.manual_seed(0)
    judge = Judge(JudgeConfig(1, JUDGE_OUTPUTS))
    yield from _fit("state_judge", judge, batch, recipe, run, torch.device(device))


def action_frames(film: np.ndarray) -> np.ndarray:
    """What an action judge looks at: the frames CLIP_FRAMES of a film [F, S, S, 3] as channels [S, S, 12]."""
    return np.concatenate(list(film[list(CLIP_FRAMES)]), -1)


def clip_frames(pool_folder: Path, instances: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames CLIP_FRAMES of every clip of these instances, uint8 [N, 128, 128, 12], and their step classes [N]."""
    path = pool_folder / f"frames-{instances}.npz"
    if not path.exists():
        frames, classes = [], []
        for seed in range(instances):
            instance = make("judge-clips", seed, SKILLS)
            for k, step in enumerate(instance.run.steps):
                frames.append(action_frames(instance.film(k)))
                classes.append(step_class(step))
        data = {"frames": np.stack(frames), "classes": np.array(classes, np.int64)}
        write_atomically(path, lambda temporary: np.savez(temporary, **data))
    data = np.load(path)
    return data["frames"], data["classes"]


def train_action_judge(
    run: Path, recipe: Recipe = ACTION_RECIPE, device: str = "cpu", instances: int = 3000
) -> Iterator[Progress]:
    """Writes `<run>/action_judge.safetensors`."""
    frames, classes = clip_frames(run / "judge-clips", instances)
    labels = torch.from_numpy(classes)[:, None]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(labels), (recipe.batch,), generator=generator)
        return soften(to_pictures(frames[rows.numpy()]), generator), labels[rows]

    torch.manual_seed(0)
    judge = Judge(JudgeConfig(len(CLIP_FRAMES), (len(STEPS),)))
    yield from _fit("action_judge", judge, batch, recipe, run, torch.device(device))


def true_labels(instance: Instance, step: int, *, after: bool = False) -> Tensor:
    """What a perfect state judge reads off the first (or last) frame of a step: labels [heads]."""
    labels = [read(instance, step, after=after) for read in (facts, colours, shapes)]
    return torch.from_numpy(np.concatenate(labels)).long()


def cast_heads(instance: Instance) -> tuple[Tensor, Tensor]:
    """Masks [heads]: the facts of the skill's own objects; the colours and shapes of those objects."""
    cast = instance.run.skill.cast
    of_facts = [name in cast for name, _, _ in HEADS]
    of_looks = [name in cast for name in (*COLOURED, *SHAPED)]
    return torch.tensor(of_facts + [False] * len(of_looks)), torch.tensor([False] * len(of_facts) + of_looks)


def own_accuracy(
    state_judge: Judge, action_judge: Judge, instances: int = 200, first_seed: int = 10_000
) -> dict[str, float]:
    """What the judges reach on true renders of instances never trained on (both splits of the benchmark).

    `state`: share of first frames with every fact of the skill's objects right; `fact`: share of these facts;
    `look`: of their colours and shapes; `end_state`: as `state`, of last frames; `action`: share of clips.
    """
    exact, fact_hits, look_hits, end_exact, action_hits = [], [], [], [], []
    for split in ("seen", "unseen"):
        for seed in range(first_seed, first_seed + instances):
            instance = make(split, seed)
            of_facts, of_looks = cast_heads(instance)
            for k, step in enumerate(instance.run.steps):
                film = instance.film(k)
                true = true_labels(instance, k)
                hits = state_judge.read(to_pictures(film[:1]))[0] == true
                exact.append(bool(hits[of_facts].all()))
                fact_hits += hits[of_facts].tolist()
                look_hits += hits[of_looks & (true > 0)].tolist()
                end = state_judge.read(to_pictures(film[-1:]))[0] == true_labels(instance, k, after=True)
                end_exact.append(bool(end[of_facts].all()))
                action = int(action_judge.read(to_pictures(action_frames(film)[None]))[0, 0])
                action_hits.append(action == step_class(step))
    figures = {"state": exact, "fact": fact_hits, "look": look_hits, "end_state": end_exact, "action": action_hits}
    return {name: float(np.mean(hits)) for name, hits in figures.items()}
