"""Training a Skill Transformer on any data set: encoding, batches, validation, resume, several processes, costs."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_keysteps import TEXTS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from train_skill_process import CONFIG, RECIPE, plans, skill, train
from two_processes import launch_two

from ksgen_core import pixels
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.keysteps.skill_transformer import SkillTransformer, SkillTransformerConfig
from ksgen_core.training import encoded_plans, skill_costs, skill_transformer
from ksgen_core.training.dataset import Record, RecordStep, read_records, write_manifest, write_shards
from ksgen_core.training.encoded_plans import encode_records
from ksgen_core.training.loop import Recipe, fit
from ksgen_core.training.skill_stage import draw_batch, target_mean, train_skill_transformer, validate
from ksgen_core.training.skill_transformer import main

pytest_plugins = ["keysteps_fixtures"]
ROOT = Path(__file__).resolve().parent.parent
F32 = torch.float32


def record(number, steps, split="train"):
    """A record whose picture k is of one colour that number and k say, with a little noise."""

    def read(name):
        k = int(name.partition(".")[0])
        noise = torch.rand(40, 48, 3, generator=torch.Generator().manual_seed(100 * number + k))
        file = io.BytesIO()
        pixels.to_pil(0.1 * noise + torch.tensor([number % 3, k / 3, 0.5]) * 0.4).save(file, "PNG")
        return file.getvalue()

    told = tuple(RecordStep(TEXTS[(number + k) % len(TEXTS)], f"{k}.png") for k in range(steps))
    return Record(f"r{number}", "make tea", told, split, read, f"record {number}")


RECORDS = [*(record(n, 2 + n % 3) for n in range(9)), record(9, 1), *(record(n, 3, "validation") for n in (10, 11))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_shards(folder, RECORDS, 5)
    return folder


def test_a_batch_holds_its_plans_and_padding_is_marked():
    given = plans()
    assert given.seen == given.of == "seen"  # so states of Tabletop's training go on
    tokens, texts, mask, is_step = given.batch([2, 0], 3)
    assert tokens.shape == (2, 3, 4, 8) and texts.shape == (2, 5, 7, 6)
    assert is_step.tolist() == [[True, True, True], [True, True, False]]
    assert tokens[0].equal(given.images[2][:3]) and tokens[1, :2].equal(given.images[0])
    for b, i in enumerate([2, 0]):
        for k, u in enumerate(given.text_of[i]):
            assert texts[b, k][mask[b, k]].equal(given.texts[u])
    assert mask[1].sum() == sum(len(given.texts[u]) for u in given.text_of[0])


def halved(given):
    images, texts = ([t.half() for t in some] for some in (given.images, given.texts))
    return dataclasses.replace(given, images=images, texts=texts)


def test_a_batch_stays_in_half_precision_if_all_of_it_is():
    given = halved(plans())
    tokens, texts, *_ = given.batch([2, 0], 3)
    assert tokens.dtype == texts.dtype == torch.half and tokens[0].equal(given.images[2][:3])
    mixed = dataclasses.replace(given, images=[given.images[0].float() * 1e6, *given.images[1:]])
    assert mixed.batch([0, 2])[0].dtype == F32 and mixed.batch([1, 2])[0].dtype == torch.half
    assert mixed.batch([0, 2])[0][0, :2].equal(mixed.images[0])


def test_batches_made_ahead_are_those_of_their_iterations(tmp_path):
    """Also where a training goes on; in half precision the numbers are those of the same tokens in float32."""
    given = halved(plans())
    wide = dataclasses.replace(given, images=[t.float() for t in given.images], texts=[t.float() for t in given.texts])
    model, lengths = skill(), torch.tensor([len(images) for images in given.images])

    def losses_of(_, generator):
        steps, chosen = draw_batch(lengths, RECIPE.batch, generator)
        return {"loss": model.loss(*wide.batch(chosen, steps))}

    model.train()
    plain = [p.losses["loss"] for p in fit("skill", model, losses_of, RECIPE, tmp_path / "plain", report=1)]
    another, found = skill(), []
    for halt in (13, None):
        events = train_skill_transformer(another, given, tmp_path / "run", RECIPE, precision=F32, report=1, keep=13)
        for progress in events:
            found.append(progress.losses["loss"])
            if progress.iteration == halt:
                events.close()
    assert found == plain
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), another.state_dict().values(), strict=True))


def test_the_loss_of_a_plan_does_not_depend_on_what_it_is_padded_for():
    given, model = plans(), skill()
    alone = [model.loss(*given.batch([i])) for i in (0, 2)]
    both = model.loss(*given.batch([0, 2]))
    torch.testing.assert_close(both, (alone[0] * 1 + alone[1] * 4) / 5)


def test_numbers_of_steps_are_drawn_uniformly_and_plans_have_them():
    lengths = torch.tensor([2, 3, 5, 4])
    found = [draw_batch(lengths, 8, torch.Generator().manual_seed(n)) for n in range(800)]
    counts = torch.bincount(torch.tensor([steps for steps, _ in found]))
    assert counts[:2].sum() == 0 and len(counts) == 6 and (counts[2:] > 150).all()
    for steps, chosen in found:
        assert len(chosen) == 8 and (steps == 2 or 0 not in chosen)
    assert {0, 1, 2, 3} == {i for steps, chosen in found if steps == 2 for i in chosen}


def test_validation_measures_the_roll_out_beside_two_baselines():
    given, model = plans(), skill()
    mean = target_mean(given)
    torch.testing.assert_close(mean, torch.cat([images[1:] for images in given.images]).mean(0))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    figures = validate(model, given, mean, F32)
    assert model.training and all(v.equal(before[k]) for k, v in model.state_dict().items())
    errors, cosines = [], []
    for i, images in enumerate(given.images):
        _, texts, mask, _ = given.batch([i])
        with torch.no_grad():
            out = model.roll_out(images[None, 0], texts, mask)[0]
        errors += (out[1:] - images[1:]).square().mean((1, 2)).tolist()
        cosines += torch.cosine_similarity(out[1:].flatten(1), images[1:].flatten(1)).tolist()
    assert figures["roll_out"]["error"] == pytest.approx(sum(errors) / 10, rel=1e-5)
    assert figures["roll_out"]["cosine"] == pytest.approx(sum(cosines) / 10, rel=1e-4)
    initial = [(x[:1] - x[1:]).square().mean((1, 2)) for x in given.images]
    assert figures["initial"]["error"] == pytest.approx(float(torch.cat(initial).mean()), rel=1e-5)
    assert figures["mean"]["error"] < figures["initial"]["error"]


def test_a_few_plans_are_learnt_by_heart(tmp_path):
    given, model = plans(), skill()
    recipe = Recipe(iterations=150, batch=8, rate=5e-3, warm_up=10, decay=0.0)
    losses = [p.losses["loss"] for p in train_skill_transformer(model, given, tmp_path, recipe, precision=F32)]
    figures = validate(model, given, target_mean(given), F32)
    assert losses[-1] < 0.2 * losses[0]
    assert figures["roll_out"]["error"] < 0.2 * figures["mean"]["error"]


def test_context_weight_draws_to_the_initial_picture(tmp_path):
    given = plans()
    recipe = Recipe(iterations=60, batch=8, rate=5e-3, warm_up=5, decay=0.0)
    near = []
    for weight in (0.0, 30.0):
        model, run = skill(), tmp_path / str(weight)
        list(train_skill_transformer(model, given, run, recipe, precision=F32, context_weight=weight))
        tokens, texts, mask, is_step = given.batch(range(4))
        with torch.no_grad():
            out = model(tokens[:, :-1], texts, mask)
        near.append(float((out - tokens[:, :1])[is_step[:, 1:]].square().mean()))
    assert near[1] < 0.2 * near[0]
    with pytest.raises(KSGenError, match="another training"):
        list(train_skill_transformer(skill(), given, tmp_path / "0.0", recipe, precision=F32, context_weight=1.0))


def test_encoded_is_what_the_model_says_and_is_kept(trained, data, tmp_path):
    model, records = KeyStepModel.load(trained), [r for r in read_records(data) if len(r.steps) > 1]
    told = []
    found, unused = encode_records(lambda: model, records, tmp_path, batch=3, told=told.append)
    with torch.no_grad():
        pictures = torch.stack([pixels.fit(records[4].image(k), *model.size) for k in range(3)])
        tokens, (states, mask, _) = model.encode_images(pictures), model.encode_texts([records[4].steps[1].text])
    assert len(found.images[4]) == len(records[4].steps) == 3
    torch.testing.assert_close(found.images[4].float(), tokens, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.texts[found.text_of[4][1]].float(), states[mask], atol=2e-3, rtol=2e-3)
    assert found.zero.equal(model.zero_image_tokens())
    assert len(told) == len(list(tmp_path.iterdir())) == 3 and not unused
    alive = []

    def load():
        alive.append(weakref.ref(another := KeyStepModel.load(trained)))
        return another

    again, _ = encode_records(load, records, tmp_path, told=told.append)
    assert alive[0]() is None  # the encoders have left before anything is trained
    assert len(told) == 3 and again.seen == found.seen
    assert all(a.equal(b) for a, b in zip(again.images, found.images, strict=True))


def test_a_killed_encoding_goes_on_and_a_changed_picture_is_encoded_anew(
    trained,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(encoded_plans, "PLANS", 2)
    write_manifest(tmp_path / "set", RECORDS[:6])
    records = read_records(tmp_path / "set")

    def killed(_name):
        raise KeyboardInterrupt

    def encode(some):
        told = []
        found, unused = encode_records(lambda: KeyStepModel.load(trained), some, tmp_path / "kept", told=told.append)
        return told, found, unused

    with pytest.raises(KeyboardInterrupt):
        encode([*records[:5], dataclasses.replace(records[5], read=killed)])
    rest, whole, _ = encode(records)
    assert rest == ["encoded 1/1 of the images that are new"]
    name = records[2].steps[1].image
    (tmp_path / "set" / name).write_bytes((tmp_path / "set" / records[0].steps[0].image).read_bytes())
    told, changed, _ = encode(read_records(tmp_path / "set"))
    assert told == ["encoded 1/1 of the images that are new"] and changed.seen != whole.seen
    assert changed.images[2][1].equal(whole.images[0][0]) and changed.images[3].equal(whole.images[3])


def test_what_is_encoded_depends_on_no_place_goal_or_neighbour(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_plans, "PLANS", 2)
    write_manifest(tmp_path / "set", RECORDS[:5])
    records = read_records(tmp_path / "set")
    reads = []

    def watched(some):
        return dataclasses.replace(some, read=lambda name: reads.append((some.id, name)) or some.read(name))

    def encode(some, folder=trained):
        reads.clear()
        load = lambda: KeyStepModel.load(folder)  # noqa: E731
        return encode_records(load, [watched(one) for one in some], tmp_path / "kept")

    whole, _ = encode(records[1:])
    # One in front, another goal, another text: only what is new is read.
    first, unused = encode([records[0], *(dataclasses.replace(one, goal="something") for one in records[1:])])
    assert {of for of, _ in reads} == {"r0"} and not unused and first.seen != whole.seen
    assert first.only(range(1, 5)).seen == whole.seen  # so held-out records make no other training
    assert all(a.equal(b) for a, b in zip(first.images[1:], whole.images, strict=True))
    steps = (dataclasses.replace(records[1].steps[0], text=records[2].steps[0].text), *records[1].steps[1:])
    told_otherwise, _ = encode([dataclasses.replace(records[1], steps=steps), *records[2:]])
    assert not reads and told_otherwise.seen != whole.seen
    # Shards of which nothing is used are named, others stay whole.
    _, unused = encode(records[3:])
    assert not reads and len(unused) == 2
    for path in unused:
        path.unlink()
    encode(records[3:])
    assert not reads
    encode(records[:3])
    assert {of for of, _ in reads} == {"r0", "r1", "r2"}
    # What a text or a picture goes through before the encoders is part of them.
    for file in ("tokenizer/tokenizer_config.json", "image_encoder/preprocessor_config.json"):
        other = tmp_path / "other" / file.partition("/")[0]
        shutil.copytree(trained, other)
        (other / file).write_text((other / file).read_text() + " ")
        encode(records, other)
        assert {of for of, _ in reads} == {record.id for record in records}, file


def words(data, folder, keysteps, *more):
    sizes = "--width 32 --layers 2 --heads 2 --ff-width 64 --batch 6 --rate 3e-3 --warm-up 5 --ema 0.9"
    every = "--report-every 5 --keep-every 10 --validate-every 20 --pictures-every 0"
    where = ["--data", data, "--keysteps", keysteps, "--run", folder / "run", "--out", folder / "skill.safetensors"]
    return [str(word) for word in [*where, *sizes.split(), *every.split(), "--device", "cpu", *more]]


def log_of(folder):
    return [json.loads(line) for line in (folder / "run/skill.log.jsonl").read_text().splitlines()]


def test_the_command_trains_validates_draws_and_does_nothing_twice(trained, data, tmp_path, capsys):
    given = words(data, tmp_path, trained, "--iterations", 40, "--pictures-every", 20)
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "9 records to train on, 2 to validate" in out
    log = log_of(tmp_path)
    looks = [(e["iteration"], e["weights"]) for e in log if "validation" in e]
    assert looks == [(20, "as they are"), (40, "average")]
    assert [e["iteration"] for e in log if "loss" in e] == list(range(5, 45, 5))
    assert sorted(p.name for p in (tmp_path / "run/skill-pictures").iterdir()) == ["000020.png", "000040.png"]
    grid, model = pixels.read_picture(tmp_path / "run/skill-pictures/000040.png"), KeyStepModel.load(trained)
    assert grid[: model.size[0], : model.size[1]].equal(pixels.fit(RECORDS[10].image(1), *model.size))
    assert grid.shape == (2 * model.size[0], 2 * model.size[1], 3)
    made = KeyStepModel.load(trained, skill_transformer=tmp_path / "skill.safetensors").skill_transformer
    assert made.empty_tokens.equal(model.zero_image_tokens()) and made.to_tokens.weight.any()
    before = load_file(tmp_path / "skill.safetensors")
    assert main(given) == 0
    after = load_file(tmp_path / "skill.safetensors")
    assert all(after[key].equal(value) for key, value in before.items()) and log_of(tmp_path) == log


def test_more_records_to_validate_on_make_no_other_training_and_old_shards_leave(trained, tmp_path):
    write_manifest(tmp_path / "set", RECORDS)
    assert main(words(tmp_path / "set", tmp_path, trained, "--iterations", 5)) == 0
    others = [record(12, 2, "validation"), *RECORDS[:-2]]
    write_manifest(tmp_path / "others", others)
    shutil.copytree(tmp_path / "others", tmp_path / "set", dirs_exist_ok=True)
    kept = set((tmp_path / "run/encoded").iterdir())
    with pytest.raises(KSGenError, match="another training"):
        main(words(tmp_path / "set", tmp_path, trained, "--iterations", 5, "--batch", 5))
    assert kept < set((tmp_path / "run/encoded").iterdir())
    assert main(words(tmp_path / "set", tmp_path, trained, "--iterations", 10)) == 0
    assert [e["iteration"] for e in log_of(tmp_path) if "loss" in e] == [5, 10]
    assert not kept <= set((tmp_path / "run/encoded").iterdir())


def test_a_state_goes_on_with_its_own_architecture_and_precision_alone(trained, tmp_path):
    """Heads and dropout change no shape."""
    write_manifest(tmp_path / "set", RECORDS[:4])
    given = ("--iterations", 5, "--dtype", "float32")
    assert main(words(tmp_path / "set", tmp_path, trained, *given)) == 0
    for other in (("--heads", 4), ("--dropout", 0.1), ("--dtype", "bfloat16")):
        with pytest.raises(KSGenError, match="another training"):
            main(words(tmp_path / "set", tmp_path, trained, *given, *other))
    assert main(words(tmp_path / "set", tmp_path, trained, *given)) == 0


def test_pictures_for_which_there_is_no_memory_do_not_cost_the_training(trained, tmp_path, monkeypatch, capsys):
    def filled(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(skill_transformer, "write_pictures", filled)
    write_manifest(tmp_path / "set", RECORDS[:4])
    assert main(words(tmp_path / "set", tmp_path, trained, "--iterations", 10, "--pictures-every", 5)) == 0
    out = capsys.readouterr().out
    assert out.count("no memory to show what is learned") == 2 and "--pictures-every 0" in out
    assert (tmp_path / "skill.safetensors").is_file()


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_resumed_equals_an_unbroken_one(trained, data, tmp_path):
    """Killed by signal 9 in a process of its own, resumed in this one: weights and log, bit for bit."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    more = ("--iterations", 160, "--validate-every", 80)
    command = [sys.executable, "-m", "ksgen_core.training.skill_transformer"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(
        command + words(data, tmp_path / "cut", trained, *more), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        log, end = tmp_path / "cut/run/skill.log.jsonl", time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 9):
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    state = torch.load(tmp_path / "cut/run/skill.state", weights_only=True)
    assert 40 <= state["iteration"] < 160 and not (tmp_path / "cut/skill.safetensors").exists()
    for name in ("whole", "cut"):
        assert main(words(data, tmp_path / name, trained, *more)) == 0
    one, two = (load_file(tmp_path / name / "skill.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began_and_agree_bit_for_bit(tmp_path):
    model = skill()
    losses = train(tmp_path / "whole", model)
    begun = train_skill_transformer(skill(), plans(), tmp_path / "run", RECIPE, precision=F32, report=1, keep=5)
    for progress in begun:
        if progress.iteration == 13:
            begun.close()  # as if killed: the state is that of iteration 10
    launch_two("train_skill_process", tmp_path / "run", tmp_path / "made")
    first, second = (torch.load(tmp_path / f"made.{number}", weights_only=True) for number in (0, 1))
    assert first["losses"] == second["losses"] and list(first["losses"]) == list(range(11, 31))
    assert first["losses"] == pytest.approx({n: loss for n, loss in losses.items() if n > 10}, rel=1e-5)
    for key, value in model.state_dict().items():
        assert first["model"][key].equal(second["model"][key])
        torch.testing.assert_close(first["model"][key], value, rtol=0, atol=1e-5)
    log = [json.loads(line)["iteration"] for line in (tmp_path / "run/skill.log.jsonl").read_text().splitlines()]
    assert log == list(range(1, 31))


@pytest.mark.slow
def test_two_processes_train_as_one_does(trained, data, tmp_path):
    """float32: sums in another order differ in their last bits, and Adam makes more of them. Losses agree to 1e-5 of
    themselves, weights to 1e-4 of the largest.
    """
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    more = ("--iterations", 40, "--dtype", "float32", "--context-weight", 0.1)
    assert main(words(data, tmp_path / "one", trained, *more)) == 0
    said = launch_two("ksgen_core.training.skill_transformer", *words(data, tmp_path / "two", trained, *more))
    assert said.count("in 2 processes") == said.count("wrote") == 1 and said.count("validation after 40") == 1
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [e["iteration"] for e in one] == [e["iteration"] for e in two]
    losses = [[e["loss"] for e in log if "loss" in e] for log in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][-1] < losses[0][0]
    one, two = (load_file(tmp_path / name / "skill.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-4 * float(value.abs().max()))


def test_what_cannot_be_trained_is_refused_in_words(trained, plain, data, tmp_path):
    def refused(match, *more, keysteps=trained, source=data):
        with pytest.raises(KSGenError, match=match):
            main(words(source, tmp_path, keysteps, *more))

    refused("has 4 steps.*--max-images", "--max-images", 3)
    refused("sizes do not make", "--heads", 5)
    for option, value in (("--iterations", 0), ("--warm-up", 0), ("--ema", 1.5), ("--max-norm", 0), ("--seed", 10**13)):
        refused("do not make a training", option, value)
    refused("--report-every is at least 1, got 0", "--report-every", 0)
    refused("--keep-every is at least 1, got 0", "--keep-every", 0)
    refused("--validate-every is at least 0, got -1", "--validate-every", -1)
    refused("--encode-batch is at least 1, got 0", "--encode-batch", 0)
    refused("--context-weight is at least 0, got nan", "--context-weight", "nan")
    refused("no image tokens", keysteps=plain)
    refused("--device 'abacus'", "--device", "abacus")
    write_manifest(tmp_path / "single", [RECORDS[9], RECORDS[10]])
    refused("no record of two or more steps to train on", source=tmp_path / "single")


def test_without_validation_records_nothing_is_validated(trained, tmp_path):
    write_manifest(tmp_path / "set", RECORDS[:4])
    assert main(words(tmp_path / "set", tmp_path, trained, "--iterations", 5)) == 0
    assert not any("validation" in entry for entry in log_of(tmp_path))
    assert (tmp_path / "skill.safetensors").is_file()


def test_a_dry_run_says_what_it_takes_and_makes_nothing(trained, data, tmp_path, capsys):
    assert main(words(data, tmp_path, trained, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "Computed, not measured" in out and "24 GB" in out and "80 GB" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [CONFIG, SkillTransformerConfig(token_width=2048, text_width=2048)], ids=str)
def test_computed_parameters_are_the_real_ones(config):
    with torch.device("meta"):
        model = SkillTransformer(config)
    assert skill_costs.parameters_of(config) == sum(p.numel() for p in model.parameters())


def test_computed_activations_and_work_are_those_of_a_real_pass():
    config = dataclasses.replace(CONFIG, token_width=64, text_width=48, width=64, layers=3, ff_width=256)
    torch.manual_seed(0)
    model = SkillTransformer(config)
    torch.nn.init.normal_(model.to_tokens.weight)
    tokens, texts = torch.randn(16, 5, 4, 64), torch.randn(16, 5, 20, 48)
    given = tokens, texts, torch.ones(16, 5, 20, dtype=torch.bool), torch.ones(16, 5, dtype=torch.bool)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*given)
    copies = 2 * skill_costs.parameters_of(config)  # autocast's, which are counted among the states
    computed = skill_costs.activations_of(config, 16 * 4 * 4, 16 * 5 * 20)
    assert computed == pytest.approx(sum(kept.values()) - copies, rel=0.1)
    del loss
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(*given).backward()
    assert skill_costs.flops_of(config, 16, 4 * 4, 5 * 20) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_the_parts_of_sdxl_have_the_stated_sizes():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.models.embeddings import IPAdapterPlusImageProjection
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        parts = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**small)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**large, num_attention_heads=20, projection_dim=1280)
            ),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(**large, num_attention_heads=16, patch_size=14, projection_dim=1024)
            ),
            "resampler": IPAdapterPlusImageProjection(1280, 2048, 1280, depth=4, dim_head=64, heads=20, num_queries=16),
            "unet": UNet2DConditionModel(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                transformer_layers_per_block=(1, 2, 10),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
        }
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    cross = [name for name in parts["unet"].attn_processors if "attn2" in name]
    layers = dict(parts["unet"].named_modules())
    widths = [layers[name.removesuffix(".processor")].to_q.out_features for name in cross]
    sizes["image attention"] = 2 * 2048 * sum(widths)  # to_k_ip and to_v_ip
    assert sizes == skill_costs.SDXL
