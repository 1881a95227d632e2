"""The training loop, the pool of pictures, the judges' file format, what a killed run leaves: tiny but real."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")

from ksgen_core.errors import KSGenError
from ksgen_core.metrics.motion import motion_distance
from ksgen_core.metrics.tabletop_judge import Judge, JudgeConfig
from ksgen_core.tabletop.instances import make
from ksgen_core.tabletop.world import HEADS
from ksgen_core.training import pool as pools
from ksgen_core.training import tabletop, wan_folder
from ksgen_core.training.judges import JUDGE_OUTPUTS, cast_heads, clip_frames, to_pictures, true_labels
from ksgen_core.training.loop import Recipe, fit, noted
from ksgen_core.training.pack import write_library
from ksgen_core.training.pool import build_pool, facts

RECIPE = Recipe(iterations=12, batch=8, rate=1e-2, warm_up=2, ema=0.9)


def _line(recipe: Recipe, run, *, report=1, keep=4, halt=None) -> tuple[torch.nn.Module, list[float]]:
    """Fit a line; gives the model and the losses of all reports. In iteration `halt` it is killed."""
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1)

    def losses_of(iteration, generator):
        if iteration == halt:
            raise KeyboardInterrupt
        x = torch.randn(recipe.batch, 4, generator=generator)
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    losses = [p.losses["loss"] for p in fit("line", model, losses_of, recipe, run, report=report, keep=keep)]
    return model, losses


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    whole, losses = _line(RECIPE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _line(RECIPE, tmp_path / "cut", halt=9)
    model, rest = _line(RECIPE, tmp_path / "cut")
    assert rest == losses[8:]
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))


@pytest.mark.parametrize(("report", "keep"), [(3, 4), (4, 3), (5, 8)])
def test_the_log_of_a_killed_and_resumed_training_is_that_of_an_unbroken_one(report, keep, tmp_path):
    """Whatever reports and checkpoints have in common."""
    _, every = _line(RECIPE, tmp_path / "every")
    _, losses = _line(RECIPE, tmp_path / "whole", report=report, keep=keep)
    with pytest.raises(KeyboardInterrupt):
        _line(RECIPE, tmp_path / "cut", report=report, keep=keep, halt=10)
    _line(RECIPE, tmp_path / "cut", report=report, keep=keep)
    assert noted(tmp_path / "cut", "line") == noted(tmp_path / "whole", "line")
    means = [sum(every[start : start + report]) / report for start in range(0, len(every) - report + 1, report)]
    assert losses == pytest.approx(means, rel=1e-6)


def test_what_the_caller_does_at_a_report_does_not_cost_the_training(tmp_path):
    model = torch.nn.Linear(4, 1)

    def losses_of(_, generator):
        return {"loss": model(torch.randn(8, 4, generator=generator)).square().mean()}

    with pytest.raises(MemoryError):
        for _progress in fit("line", model, losses_of, RECIPE, tmp_path, report=4, keep=4):
            raise MemoryError
    assert torch.load(tmp_path / "line.state", weights_only=True)["iteration"] == 4
    rest = [p.iteration for p in fit("line", model, losses_of, RECIPE, tmp_path, report=4, keep=4)]
    assert rest == [8, 12]


def test_a_state_from_before_losses_were_kept_in_it_is_gone_on_from(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _line(RECIPE, tmp_path, halt=9)
    state = torch.load(tmp_path / "line.state", weights_only=True)
    del state["since"]
    torch.save(state, tmp_path / "line.state")
    assert len(_line(RECIPE, tmp_path)[1]) == 4


def test_processes_drop_out_each_its_own(tmp_path):
    class Two:
        """What `fit` asks of an accelerator, of a process whose others do as it does."""

        num_processes, is_main_process = 2, True

        def __init__(self, number):
            self.process_index = number

        def reduce(self, sent, _):
            return sent

    def masks(run, accelerator):
        model, seen = torch.nn.Linear(4, 1), []

        def losses_of(_, generator):
            seen.append((torch.nn.functional.dropout(torch.ones(64)), torch.rand(8, generator=generator)))
            return {"loss": model(torch.ones(1, 4)).sum()}

        list(fit("line", model, losses_of, RECIPE, run, report=1, keep=12, accelerator=accelerator))
        return seen

    alone, first, second = (masks(tmp_path / str(k), a) for k, a in enumerate((None, Two(0), Two(1))))
    for one, two, three in zip(alone, first, second, strict=True):
        assert one[0].equal(two[0]) and not one[0].equal(three[0])
        assert one[1].equal(two[1]) and one[1].equal(three[1])


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


@pytest.mark.parametrize(
    ("nonsense", "match"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"warm_up": 0}, "warm-up"),
        ({"ema": 1.5}, "average below 1"),
        ({"ema": 1.0}, "average below 1"),
        ({"clip": 0.0}, "norm"),
        ({"decay": -1.0}, "decay"),
        ({"seed": 10**13}, "seed"),
        ({"seed": -1}, "seed"),
    ],
)
def test_recipes_refuse_nonsense(nonsense, match):
    with pytest.raises(ValueError, match=match):
        Recipe(**{"iterations": 1, "batch": 1, "rate": 1e-3, **nonsense})


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


@pytest.fixture(scope="module")
def small_pool(tmp_path_factory):
    """The folder of a pool of two instances; nobody writes into it."""
    folder = tmp_path_factory.mktemp("small") / "pool"
    build_pool(folder, ("train",), range(2), workers=1)
    return folder


def test_a_pool_that_another_process_finished_meanwhile_is_used(small_pool, tmp_path, monkeypatch):
    get_context = pools.get_context

    def meanwhile(method):
        shutil.copytree(small_pool, tmp_path / "pool", dirs_exist_ok=True)
        return get_context(method)

    monkeypatch.setattr(pools, "get_context", meanwhile)
    build_pool(tmp_path / "pool", ("train",), range(2), workers=1)
    for file in small_pool.iterdir():
        assert (tmp_path / "pool" / file.name).stat().st_mtime_ns == file.stat().st_mtime_ns, file.name


def test_another_pool_leaves_the_pictures_that_somebody_reads(small_pool, tmp_path):
    shutil.copytree(small_pool, tmp_path / "pool")
    pool = pools.Pool.open(tmp_path / "pool")
    pictures = np.array(pool.images)
    more = build_pool(tmp_path / "pool", ("train",), range(1, 4), workers=1)
    assert np.array_equal(pool.images, pictures)
    assert not np.array_equal(more.images[: len(pictures)], pictures)


def test_a_pool_cut_off_in_writing_is_no_pool(small_pool, tmp_path, monkeypatch):
    shutil.copytree(small_pool, tmp_path / "pool")
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", cut_off)
        with pytest.raises(KeyboardInterrupt):
            build_pool(tmp_path / "pool", ("train",), range(1, 4), workers=1)
    again = build_pool(tmp_path / "pool", ("train",), range(2), workers=1)
    assert np.array_equal(again.images, pools.Pool.open(small_pool).images)


def cut_off(path, **_arrays):
    """In place of `np.savez`: killed in the middle."""
    with open(path, "wb") as file:
        file.write(b"half")
    raise KeyboardInterrupt


def test_clip_frames_cut_off_in_writing_are_made_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", cut_off)
        with pytest.raises(KeyboardInterrupt):
            clip_frames(tmp_path / "clips", 1)
    frames, classes = clip_frames(tmp_path / "clips", 1)
    assert len(frames) == len(classes) > 0 and frames.shape[1:] == (128, 128, 12)
    assert [file.name for file in (tmp_path / "clips").iterdir()] == ["frames-1.npz"]


def test_a_run_without_a_trained_part_is_not_packed(tmp_path):
    (tmp_path / "models").mkdir()
    for mistyped in ("missing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(KSGenError, match=f"{mistyped} holds no trained part.*--run"):
            tabletop.main(["--run", str(tmp_path / mistyped), "--pack", str(tmp_path / "models")])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "models"]


def test_a_library_that_cannot_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    def full(path, text, encoding):
        path.write_bytes(text[:100].encode(encoding))
        raise OSError(28, "No space left on device")

    write_library(tmp_path / "library.jsonl")
    before = (tmp_path / "library.jsonl").read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(KSGenError, match="library.jsonl cannot be written"):
        write_library(tmp_path / "library.jsonl")
    assert (tmp_path / "library.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["library.jsonl"]


def test_untrained_models_killed_on_the_way_are_made_again(tmp_path, monkeypatch):
    def killed(_model, _folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(tabletop, "WAN_MINI", wan_folder.TINY)
    with monkeypatch.context() as patch:
        patch.setattr(wan_folder.WanClipModel, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            tabletop._clip_model(tmp_path)
    assert tabletop._clip_model(tmp_path).parts().keys() == {"transformer", "vae", "text_encoder"}
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["clips"]


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
