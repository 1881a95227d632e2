"""The mini MLLM in the making: its folder, its tokens, its samples, its training, and what counts as an exact plan."""

from __future__ import annotations

import json
from itertools import combinations
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")
pytest.importorskip("llguidance", reason="a language model plans under constraints: pip install llguidance")

from ksgen_core.metrics.tabletop_plans import is_exact
from ksgen_core.pipeline import Planned
from ksgen_core.pixels import from_uint8
from ksgen_core.planning.mllm_chat import model_inputs
from ksgen_core.planning.mllm_transformers import Mllm, WritingSettings, write_plan
from ksgen_core.planning.wording import user_text
from ksgen_core.tabletop.mixtures import HELD_OUT, _pairs
from ksgen_core.tabletop.skills import BY_NAME, SKILLS, all_texts
from ksgen_core.tabletop.started import carried_out, make_started, plans_left, whole_plans
from ksgen_core.training import planner_stage, tabletop
from ksgen_core.training.loop import Recipe
from ksgen_core.training.planner_folder import TINY, PlannerModel, new_planner_folder, take_over_tower
from ksgen_core.training.planner_samples import Pictures, build_pictures, draw_sample, facts_of
from ksgen_core.training.planner_stage import Encoder, Writer, in_parts, losses_of_batch, pixels_of
from ksgen_core.types import Query


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained planner; nobody writes into it."""
    folder = tmp_path_factory.mktemp("planner") / "planner"
    new_planner_folder(folder, all_texts(), TINY)
    return folder


@pytest.fixture(scope="module")
def planner(folder):
    return PlannerModel.load(folder)


def facts_of_all(started):
    return np.stack([facts_of(one) for one in started])


def drawn(count: int, split: str = "train", seed: int = 0):
    random = Random(seed)
    started = [make_started(split, k) for k in range(count)]
    return started, [draw_sample(one, random, k % 4) for k, one in enumerate(started)]


def test_the_loader_of_any_mllm_reads_the_folder_and_gets_a_valid_plan_of_it(folder):
    mllm = Mllm.load(folder)
    assert mllm.sees
    started = make_started("seen", 1)
    query = Query(from_uint8(started.picture()), started.run.goal)
    *_, last = write_plan(mllm, query, (), WritingSettings(max_tokens=120))
    assert isinstance(last, Planned) and last.plan.goal == started.run.goal


def test_weights_have_the_names_that_transformers_4_and_5_both_read(folder):
    names = load_file(folder / "model.safetensors").keys()
    heads = ("language_model.model.", "language_model.lm_head.", "multi_modal_projector.", "vision_tower.vision_model.")
    assert all(any(name.startswith(head) for head in heads) for name in names)
    assert all(any(name.startswith(head) for name in names) for head in heads)


@pytest.mark.parametrize("number", range(4))
def test_trained_is_what_is_asked_at_use(planner, folder, number):
    """The tokens and the picture of a sample are those that the folder's processor makes of the same query."""
    (*_, started), (*_, sample) = drawn(number + 1)
    query = Query(from_uint8(started.picture(32)), sample.goal)
    processor = Mllm.load(folder).processor
    wanted = model_inputs(processor, True, query, sample.examples, fewest=1, most=7, done=sample.done)
    assert Encoder(planner).prompt(sample) == wanted["input_ids"][0].tolist()
    assert torch.allclose(pixels_of(started.picture(32)[None]), wanted["pixel_values"], atol=1e-5)


def test_the_system_message_is_left_out(planner, folder):
    processor = Mllm.load(folder).processor
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Goal"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Plan!"}]}
    given = {"add_generation_prompt": True, "tokenize": False}
    bare = processor.apply_chat_template([user], **given)
    assert processor.apply_chat_template([system, user], **given) == bare
    assert "Goal" in bare


@pytest.mark.parametrize(
    "text", ["put a tea bag into the mug", 'Zürich 東京 \U0001f600 \\"x\\"\n\t', "a  b", '{"a": ["b"]}']
)
def test_any_text_survives_the_tokenizer(planner, text):
    assert planner.tokenizer.decode(Encoder(planner).ids(text)) == text


def test_words_of_this_world_are_one_token_each(planner):
    ids = Encoder(planner).ids
    for text in all_texts():
        assert len(ids(text)) == len(text.split()) + text.count("'") * 2, text


def test_a_batch_can_be_overfitted_and_the_reply_comes_back(folder, tmp_path):
    planner = PlannerModel.load(folder)
    torch.manual_seed(0)
    started, samples = drawn(4)
    images = np.stack([one.picture(32) for one in started])
    encoder, writer = Encoder(planner), Writer(planner.model).train()
    batch, pixels = encoder.batch(samples, facts_of_all(started)), pixels_of(images)
    optimiser = torch.optim.AdamW(writer.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        found = losses_of_batch(writer, batch, pixels)
        optimiser.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimiser.step()
        losses.append(float(found["reply"].detach()))
    assert losses[-1] < 0.02 < losses[0]
    planner.save(tmp_path / "trained", torch.bfloat16)
    mllm = Mllm.load(tmp_path / "trained")
    assert next(mllm.model.parameters()).dtype == torch.bfloat16
    for one, image, sample in zip(started, images, samples, strict=True):
        assert sample.seen
        query = Query(from_uint8(image), sample.goal)
        *_, last = write_plan(mllm, query, sample.examples, WritingSettings(fewest=1, max_tokens=160, done=sample.done))
        got = [step.text for step in last.plan.steps]
        assert got == [step["text"] for step in json.loads(sample.reply)["steps"]], one.run.skill.name


def test_the_padding_of_a_batch_is_not_seen(planner):
    started, samples = drawn(8)
    encoder, writer = Encoder(planner), Writer(planner.model).eval()
    pixels = pixels_of(np.stack([one.picture(32) for one in started]))
    facts = facts_of_all(started)
    triples = zip(samples, facts, pixels, strict=True)
    alone = [
        losses_of_batch(writer, encoder.batch([sample], known[None]), each[None])["reply"].detach()
        for sample, known, each in triples
    ]
    batch = encoder.batch(samples, facts)
    counts = (batch["kinds"][:, 1:] == 1).sum(1)
    together = losses_of_batch(writer, batch, pixels)["reply"].detach()
    assert float(together) == pytest.approx(float((torch.stack(alone) * counts).sum() / counts.sum()), rel=1e-2)


def test_parts_in_threads_give_the_gradients_of_their_mean(planner):
    from concurrent.futures import ThreadPoolExecutor

    started, samples = drawn(4)
    encoder, writer = Encoder(planner), Writer(planner.model).train()
    pixels = pixels_of(np.stack([one.picture(32) for one in started]))
    facts = facts_of_all(started)
    parts = [(encoder.batch(samples[k::2], facts[k::2]), pixels[k::2]) for k in range(2)]
    apart = [losses_of_batch(writer, *part) for part in parts]
    (torch.stack([loss for losses in apart for loss in losses.values()]).sum() / 2).backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in writer.parameters()]
    writer.zero_grad()
    with ThreadPoolExecutor(2) as workers:
        found = in_parts(writer, parts, workers)
    torch.stack(list(found.values())).sum().backward()
    for gradient, parameter in zip(wanted, writer.parameters(), strict=True):
        assert gradient is None or torch.allclose(gradient, parameter.grad, atol=1e-6)
    mean = torch.stack([losses["reply"] for losses in apart]).mean()
    assert float(found["reply"].detach()) == pytest.approx(float(mean.detach()))


def test_no_sample_holds_what_only_unseen_skills_have():
    random = Random(1)
    unseen = {goal for skill in SKILLS if skill.unseen for goal in skill.goals}
    for split in ("train", "mixed"):
        for seed in range(150):
            sample = draw_sample(make_started(split, seed), random, seed % 5)
            assert not any(skill.unseen for skill in sample.skills)
            assert not _pairs(skill.steps for skill in sample.skills) & HELD_OUT
            assert sample.goal not in unseen and not unseen & {e.plan.goal for e in sample.examples}


def test_a_reply_is_an_exact_plan_taken_from_an_example():
    random = Random(2)
    copied = 0
    for seed in range(200):
        started = make_started(("train", "mixed")[seed % 2], seed)
        sample = draw_sample(started, random, seed % 5)
        texts = [step["text"] for step in json.loads(sample.reply)["steps"]]
        if sample.examples:
            plans = [[step.text for step in e.plan.steps] for e in sample.examples]
            assert any(set(texts) <= set(plan) for plan in plans)
        if not sample.copied and (sample.seen or sample.done):
            run = started.run
            right = plans_left(run.skill, started.done, run.states[0])
            assert is_exact(texts, [[step.texts for step in plan] for plan in right])
        copied += sample.copied
    assert 20 < copied < 120


def test_marks_say_what_the_picture_shows_as_done(planner):
    encoder = Encoder(planner)
    _, samples = drawn(40)
    kinds = set()
    for sample in samples:
        marks = encoder.marks(encoder.prompt(sample), sample)
        assert [m for m in marks if m >= 0] == [m for example in sample.marks for m in example if m >= 0]
        kinds |= {m for m in marks if m >= 0}
    assert kinds == {0, 1}


@pytest.mark.parametrize("split", ["train", "mixed", "unseen"])
def test_what_is_left_leads_to_the_goal(split):
    for seed in range(60):
        started = make_started(split, seed)
        run = started.run
        plans = plans_left(run.skill, started.done, run.states[0])
        assert run.steps in plans
        required = {step for step in run.skill.steps if not step.optional} - set(started.done)
        for plan in plans:
            assert required <= set(plan) and not set(plan) & set(started.done)
            ends = {step: carried_out(run.states[0], plan) for step in plan}
            for name, attribute, value in plan[-1].effects:
                assert ends[plan[-1]][name][attribute] == value


def test_a_started_picture_shows_what_is_done():
    fresh, begun = (make_started("seen", 3, begun=begun) for begun in (False, True))
    assert not fresh.done and begun.done and begun.run.steps
    assert all(make_started("unseen", seed, begun=True).done for seed in range(30))
    assert not np.array_equal(fresh.picture(), begun.picture())


def test_exactness_accepts_every_wording_order_and_choice_that_is_right_and_nothing_else():
    skill = BY_NAME["tea"]
    boil, bag, brew, milk = skill.steps
    right = [[step.texts for step in plan] for plan in whole_plans(skill)]
    assert len(right) == 4
    texts = [step.texts[0] for step in skill.steps]
    assert is_exact(texts, right) and is_exact(texts[:3], right)
    assert is_exact([bag.texts[1].upper(), f" {boil.texts[2]} ", brew.texts[2]], right)
    for wrong in (
        [brew.texts[0], boil.texts[0], bag.texts[0]],  # an order that does not work
        texts[1:],  # a required step is missing
        [*texts, texts[0]],  # one too many
        [texts[0], texts[0], texts[2]],
        [texts[0], "put a tea bag into the pot", texts[2]],
        [milk.texts[0], *texts[:3]],
        [],
    ):
        assert not is_exact(wrong, right), wrong
    left = plans_left(skill, [boil], carried_out(make_state(skill), [boil]))
    right = [[step.texts for step in plan] for plan in left]
    assert is_exact(texts[1:], right) and is_exact(texts[1:3], right) and not is_exact(texts, right)


def make_state(skill):
    from ksgen_core.tabletop.skills import unfold

    return unfold(skill, Random(0), skip=0).states[0]


def test_what_a_grey_picture_would_show_is_not_asked(planner):
    started, samples = drawn(60)
    batch = Encoder(planner).batch(samples, facts_of_all(started))
    grey = torch.tensor([not sample.seen for sample in samples])
    assert grey.any() and not grey.all()
    assert (batch["facts"][grey] < 0).all() and (batch["facts"][~grey] >= 0).all()


def test_school_has_no_pictures_and_is_all_copying():
    (samples,) = planner_stage.draw_school(20, torch.Generator().manual_seed(0))
    for sample in samples:
        texts = [step["text"] for step in json.loads(sample.reply)["steps"]]
        assert sample.copied and not sample.skills
        assert texts in [[step.text for step in example.plan.steps] for example in sample.examples]


def test_pictures_are_rendered_once(tmp_path):
    pictures = build_pictures(tmp_path, 2, workers=1)
    assert isinstance(pictures, Pictures) and len(pictures.started) == len(pictures.facts) == 4
    assert np.array_equal(pictures.images[3], make_started("mixed", 1).picture())
    stamp = (tmp_path / "images.npy").stat().st_mtime_ns
    build_pictures(tmp_path, 2, workers=1)
    assert (tmp_path / "images.npy").stat().st_mtime_ns == stamp


def test_the_tower_takes_over_an_encoder_of_its_width_and_no_other(planner, folder):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(num_hidden_layers=2, projection_dim=32, **sizes))
    mine = PlannerModel.load(folder)
    take_over_tower(mine.model, encoder)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        theirs = encoder(pixels, output_hidden_states=True).hidden_states[1]
        ours = mine.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(ours, theirs, atol=1e-5)
    narrow = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**sizes, "hidden_size": 16}, projection_dim=16))
    with pytest.raises(ValueError, match="shape"):
        take_over_tower(mine.model, narrow)


def test_a_part_of_the_run_is_trained_kept_resumed_and_packed(tmp_path, monkeypatch):
    """Through `ksgen train tabletop` itself, with everything minimal."""
    from ksgen_core.training import sdxl_folder
    from ksgen_core.training.pack import pack_planner

    monkeypatch.setattr(tabletop, "MINI", sdxl_folder.TINY)
    monkeypatch.setattr(tabletop, "PLANNER_MINI", TINY)
    monkeypatch.setattr(tabletop, "build_pictures", lambda folder: small_pictures(folder))
    monkeypatch.setattr(planner_stage, "pixels_of", lambda images: pixels_of(images[:, ::4, ::4]))
    key_steps = tabletop._key_step_model(tmp_path)
    monkeypatch.setattr(tabletop, "take_over_tower", lambda model, encoder: None)
    tabletop._keep(key_steps, tmp_path, "encoders")
    recipe = Recipe(iterations=4, batch=2, rate=1e-3, warm_up=1)
    list(tabletop.train_part("planner", tmp_path, recipe))
    assert (tmp_path / "planner.safetensors").exists() and (tmp_path / "planner-replies/000004.txt").exists()
    assert list(tabletop.train_part("planner", tmp_path, recipe)) == []
    trained = tabletop._planner_model(tmp_path)
    before = trained.model.lm_head.weight.clone()
    tabletop._take(trained, tmp_path, "planner")
    assert not trained.model.lm_head.weight.equal(before)
    pack_planner(trained, tmp_path / "mini")
    packed = Mllm.load(tmp_path / "mini" / "planner")
    assert torch.allclose(packed.model.lm_head.weight.float(), trained.model.lm_head.weight, atol=1e-2)


def small_pictures(folder):
    return build_pictures(folder, 4, workers=1)


def test_examples_stand_in_the_prompt_before_the_goal():
    _, samples = drawn(8)
    for sample in samples:
        text = user_text(sample.goal, sample.examples, sample.done)
        assert text.endswith(f"Goal: {json.dumps(sample.goal)}")
        assert text.count('"steps"') == len(sample.examples)


def test_steps_of_different_skills_never_share_all_their_wordings():
    """Else a text would not say which step is meant."""
    for skill in SKILLS:
        for a, b in combinations(skill.steps, 2):
            assert not set(a.texts) & set(b.texts), skill.name
