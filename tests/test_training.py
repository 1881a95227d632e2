"""The training loop, the pool of pictures, the judges' file format: tiny but real."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")

from ksgen_core.errors import KSGenError
from ksgen_core.metrics.motion import motion_distance
from ksgen_core.metrics.tabletop_judge import Judge, JudgeConfig
from ksgen_core.tabletop.instances import make
from ksgen_core.tabletop.world import HEADS
from ksgen_core.training.judges import JUDGE_OUTPUTS, cast_heads, to_pictures, true_labels
from ksgen_core.training.loop import Recipe, fit
from ksgen_core.training.pool import build_pool, facts

RECIPE = Recipe(iterations=12, batch=8, rate=1e-2, warm_up=2, ema=0.9)


def _line(recipe: Recipe, run) -> tuple[torch.nn.Module, list[float]]:
    """Fit a line; gives the model and the losses of every iteration."""
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1)

    def losses_of(_, generator):
        x = torch.randn(recipe.batch, 4, generator=generator)
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    losses = [p.losses["loss"] for p in fit("line", model, losses_of, recipe, run, report=1, keep=4)]
    return model, losses


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    whole, losses = _line(RECIPE, tmp_path / "whole")
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1)

    def losses_of(iteration, generator):
        if iteration == 9 and not (tmp_path / "cut" / "again").exists():
            raise KeyboardInterrupt
        x = torch.randn(RECIPE.batch, 4, generator=generator)
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    with pytest.raises(KeyboardInterrupt):
        list(fit("line", model, losses_of, RECIPE, tmp_path / "cut", report=1, keep=4))
    (tmp_path / "cut" / "again").touch()
    model = torch.nn.Linear(4, 1)
    rest = [p.losses["loss"] for p in fit("line", model, losses_of, RECIPE, tmp_path / "cut", report=1, keep=4)]
    assert rest == losses[8:]
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))


def test_a_finished_training_is_loaded_not_done_again(tmp_path):
    whole, _ = _line(RECIPE, tmp_path)
    again, losses = _line(RECIPE, tmp_path)
    assert losses == []
    assert again.weight.equal(whole.weight)


def test_a_state_of_another_training_is_refused(tmp_path):
    _line(RECIPE, tmp_path)
    for other in (dataclasses.replace(RECIPE, rate=2e-2), dataclasses.replace(RECIPE, iterations=4)):
        with pytest.raises(KSGenError, match="Delete it"):
            _line(other, tmp_path)
    _, more = _line(dataclasses.replace(RECIPE, iterations=14), tmp_path)
    assert len(more) == 2


def test_the_loss_falls_and_the_log_tells(tmp_path):
    _, losses = _line(dataclasses.replace(RECIPE, iterations=200, rate=3e-2), tmp_path)
    assert losses[-1] < 0.05 * losses[0]
    assert len((tmp_path / "line.log.jsonl").read_text().splitlines()) == 200


def test_recipes_refuse_nonsense():
    with pytest.raises(ValueError, match="rate"):
        Recipe(iterations=1, batch=1, rate=0)


def test_pool_holds_what_the_world_knows(tmp_path):
    pool = build_pool(tmp_path / "pool", ("train",), range(3), workers=1)
    instance = make("train", 1)
    rows = np.flatnonzero(pool.instance == 1)
    assert pool.index[rows].tolist() == [*range(len(instance.run.steps)), -1]
    for k, row in enumerate(rows[:-1]):
        assert np.array_equal(pool.images[row], instance.first_frame(k))
        assert np.array_equal(pool.facts[row], facts(instance, k))
    assert pool.texts[1] == list(instance.run.texts)
    again = build_pool(tmp_path / "pool", ("train",), range(3), workers=1)
    assert np.array_equal(again.images, pool.images)


def test_labels_tell_before_from_after():
    instance = make("seen", 11)
    before, after = facts(instance, 0), facts(instance, 0, after=True)
    changed = {HEADS[k][:2] for k in np.flatnonzero(before != after)}
    assert {(n, a) for n, a, _ in instance.run.steps[0].effects} <= changed


def test_judge_reads_the_labels_of_a_batch_it_is_shown_often(tmp_path):
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(1, JUDGE_OUTPUTS, width=8))
    instances = [make("train", seed) for seed in range(6)]
    pictures = to_pictures(np.stack([i.first_frame(0) for i in instances]))
    labels = torch.stack([true_labels(i, 0) for i in instances])
    optimiser = torch.optim.Adam(judge.parameters(), 5e-3)
    for _ in range(60):
        loss = sum(torch.nn.functional.cross_entropy(x, labels[:, k]) for k, x in enumerate(judge(pictures)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    judge.eval()
    assert (judge.read(pictures) == labels).float().mean() > 0.97
    judge.save(tmp_path / "judge.safetensors")
    again = Judge.load(tmp_path / "judge.safetensors")
    assert again.config == judge.config
    with pytest.raises(KSGenError, match="kind|holds"):
        from ksgen_core.checkpoints import save_weights

        save_weights(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, "ksgen.other/1")
        Judge.load(tmp_path / "other.safetensors")


def test_cast_heads_cover_facts_and_looks_of_the_skill_alone():
    instance = make("seen", 2)
    of_facts, of_looks = cast_heads(instance)
    assert len(of_facts) == len(of_looks) == len(JUDGE_OUTPUTS)
    assert not (of_facts & of_looks).any()
    assert {HEADS[k][0] for k in torch.nonzero(of_facts)[:, 0]} <= set(instance.run.skill.cast)


def test_motion_distance_is_zero_for_the_same_film_and_grows_with_another():
    pytest.importorskip("cv2", reason="motion distance needs opencv-python-headless")
    film = make("seen", 3).film(0)
    assert motion_distance(film, film) == 0
    assert motion_distance(film, np.repeat(film[:1], len(film), 0)) > motion_distance(film, np.roll(film, 1, 2)) > 0
    with pytest.raises(ValueError, match="one shape"):
        motion_distance(film, film[:3])
