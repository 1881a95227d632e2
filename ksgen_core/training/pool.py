"""A pool of Tabletop pictures on disk with everything that is known about them: rendered once, read by every trainer.

Legend: N pictures, H = len(HEADS) facts, K = len(COLOURED) coloured objects, F = len(SHAPED) with several shapes. A
label is 0 where the object is not in the picture, else 1 + the index of its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import read_json, write_atomically, write_json
from ..pixels import from_uint8
from ..tabletop.instances import Instance, make
from ..tabletop.scene import COLOURS
from ..tabletop.skills import SKILLS, Step
from ..tabletop.world import HEADS, KINDS

TRAIN_SPLITS, TRAIN_INSTANCES = ("train", "mixed"), 6000
"""What everything but the judges is trained on: so many instances of each split, their number being the seed."""
COLOURED = tuple(kind.name for kind in KINDS.values() if kind.coloured)
SHAPED = tuple(kind.name for kind in KINDS.values() if kind.shapes > 1)
STEPS: tuple[tuple[str, str, str], ...] = tuple(
    dict.fromkeys((s.action, s.obj, s.target) for skill in SKILLS for s in skill.steps)
)
"""Every (action, object, target) of this world: the classes of an action judge."""


def step_class(step: Step) -> int:
    return STEPS.index((step.action, step.obj, step.target))


def facts(instance: Instance, step: int, *, after: bool = False) -> np.ndarray:
    """Labels [H] of the picture before (or at the end of) a step."""
    state = instance.run.states[step + after]
    places = instance.shots[step].places
    labels = np.zeros(len(HEADS), np.int8)
    for k, (name, attribute, values) in enumerate(HEADS):
        if name not in places:
            continue
        if name in state:
            labels[k] = 1 + values.index(state[name][attribute])
        elif name in instance.room.bystanders:
            labels[k] = 1
    return labels


def colours(instance: Instance, step: int, *, after: bool = False) -> np.ndarray:
    """Labels [K] of the colours of the objects in the picture."""
    state, room = instance.run.states[step + after], instance.room
    labels = np.zeros(len(COLOURED), np.int8)
    for k, name in enumerate(COLOURED):
        if name in instance.shots[step].places and (name in state or name in room.bystanders):
            labels[k] = 1 + COLOURS.index(room.looks[name].colour)
    return labels


def shapes(instance: Instance, step: int, *, after: bool = False) -> np.ndarray:
    """Labels [F] of the shapes of the objects in the picture."""
    state, room = instance.run.states[step + after], instance.room
    labels = np.zeros(len(SHAPED), np.int8)
    for k, name in enumerate(SHAPED):
        if name in instance.shots[step].places and (name in state or name in room.bystanders):
            labels[k] = 1 + room.looks[name].shape
    return labels


@dataclass(frozen=True)
class Pool:
    """`images` uint8 [N, 128, 128, 3] (on disk), `facts` [N, H], `colours` [N, K], `shapes` [N, F],
    `steps` [N] class, `instance`, `index` [N].

    `index` is the step's number, -1 for the last frame of the last clip. `texts[i]` are the step texts of instance i,
    `goals[i]` its goal.
    """

    images: np.ndarray
    facts: np.ndarray
    colours: np.ndarray
    shapes: np.ndarray
    steps: np.ndarray
    instance: np.ndarray
    index: np.ndarray
    texts: list[list[str]]
    goals: list[str]

    def crops(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Random pieces [count, size, size, 3], 0..1, at corners that are multiples of 8."""
        rows = torch.randint(len(self.images), (count,), generator=generator).tolist()
        corners = torch.randint(0, (self.images.shape[1] - size) // 8 + 1, (count, 2), generator=generator) * 8
        places = zip(rows, corners.tolist(), strict=True)
        return from_uint8(np.stack([self.images[r, y : y + size, x : x + size] for r, (y, x) in places]))

    @classmethod
    def open(cls, folder: Path) -> Pool:
        labels = np.load(folder / "labels.npz")
        words = json.loads((folder / "words.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r")
        names = ("facts", "colours", "shapes", "steps", "instance", "index")
        return cls(images, *(labels[n] for n in names), words["texts"], words["goals"])


def _render(task: tuple[str, int, bool]) -> tuple[list, list[str], str]:
    split, seed, every_skill = task
    instance = make(split, seed, SKILLS if every_skill else None)
    rows = []
    for k, step in enumerate(instance.run.steps):
        labels = facts(instance, k), colours(instance, k), shapes(instance, k)
        rows.append((instance.first_frame(k), *labels, step_class(step), k))
    last = len(rows) - 1
    end = instance.film(last, frames=2)[-1]
    labels = tuple(read(instance, last, after=True) for read in (facts, colours, shapes))
    rows.append((end, *labels, rows[-1][4], -1))
    return rows, list(instance.run.texts), instance.run.goal


def build_pool(
    folder: Path, splits: Sequence[str], seeds: Sequence[int], *, every_skill: bool = False, workers: int = 2
) -> Pool:
    """Render the instances of each split with these seeds into `folder`, unless they are there already.

    Two processes may do so at once: a file is never changed that another one reads, and the stamp says that all are
    there. Raises `KSGenError` if they cannot be written.
    """
    stamp = {"splits": list(splits), "first": seeds[0], "count": len(seeds), "every_skill": every_skill}
    if _holds(folder, stamp):
        return Pool.open(folder)
    tasks = [(split, seed, every_skill) for split in splits for seed in seeds]
    images, rows, texts, goals, ids = [], [], [], [], []
    with get_context("spawn").Pool(workers) as processes:
        for number, (found, words, goal) in enumerate(processes.imap(_render, tasks, chunksize=16)):
            texts.append(words)
            goals.append(goal)
            for image, *labels in found:
                images.append(image)
                rows.append(labels)
                ids.append(number)
    if _holds(folder, stamp):  # another process has been faster
        return Pool.open(folder)
    labels = {
        "facts": np.stack([r[0] for r in rows]),
        "colours": np.stack([r[1] for r in rows]),
        "shapes": np.stack([r[2] for r in rows]),
        "steps": np.array([r[3] for r in rows], np.int16),
        "instance": np.array(ids, np.int32),
        "index": np.array([r[4] for r in rows], np.int8),
    }
    words = json.dumps({"texts": texts, "goals": goals})
    (folder / "stamp.json").unlink(missing_ok=True)  # of another pool, which ends here
    write_atomically(folder / "images.npy", lambda temporary: np.save(temporary, np.stack(images)))
    write_atomically(folder / "labels.npz", lambda temporary: np.savez(temporary, **labels))
    write_atomically(folder / "words.json", lambda temporary: Path(temporary).write_text(words))
    write_json(folder / "stamp.json", stamp)
    return Pool.open(folder)


def _holds(folder: Path, stamp: Mapping[str, object]) -> bool:
    return (folder / "stamp.json").exists() and read_json(folder / "stamp.json") == stamp
