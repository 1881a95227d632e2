"""The Skill Transformer in the host's own graph: on its own SDXL, through its own sampler, as on the diffusers road."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import pytest
import torch
from comfy_server import NodeFailed, Server, new_base_folder
from conftest import TEXTS
from safetensors.torch import load_file, save_file
from sdxl_graphs import (
    LORA,
    PICTURE,
    SCALE,
    SIZES,
    TOLERANCE,
    apart,
    applied,
    close,
    draw_with_diffusers,
    drawn,
    graph,
    run,
)
from test_run import node

from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.pixels import to_pil
from ksgen_core.training.sdxl_folder import new_sdxl_folder

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with a model whose adapter and Skill Transformer both speak, as after training."""
    folder = new_base_folder(tmp_path_factory.mktemp("sdxl") / "base")
    tiny = folder / "models/ksgen/tiny"
    new_sdxl_folder(tiny, TEXTS, SIZES, seed=0)
    model = KeyStepModel.load(tiny / "keysteps")
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.pipe.unet.named_parameters():
            if "to_v_ip" in name:
                weight.normal_(std=0.5, generator=numbers)
        model.skill_transformer.to_tokens.weight.normal_(std=0.5, generator=numbers)
    model.save(tiny / "keysteps")
    (folder / "models/ipadapter").mkdir()
    copy(tiny / "keysteps/ip_adapter/ip-adapter-plus.safetensors", folder / "models/ipadapter/plus.safetensors")
    (folder / "models/loras").mkdir()
    name = f"{LORA}.lora_{{}}.weight"
    weights = {name.format("down"): torch.full((1, 32), 0.1), name.format("up"): torch.full((64, 1), 0.1)}
    save_file(weights, folder / "models/loras/tiny.safetensors")
    to_pil(PICTURE[0]).save(folder / "input/picture.png")
    for name in ("tiny_sdxl.py", "any_text_encoder.py"):
        copy(HERE / name, folder / "custom_nodes")
    return folder


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    # On a CPU the host would halve the precision of its encoders' weights.
    server = Server(base, ("--fp32-text-enc",))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def model(base: Path) -> KeyStepModel:
    return KeyStepModel.load(base / "models/ksgen/tiny/keysteps")


@pytest.fixture(scope="module")
def foreseen(model: KeyStepModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The core's own tokens of all steps and of the zero image, for the same picture and plan."""
    with torch.no_grad():
        text, mask, _ = model.encode_texts(TEXTS)
        first = model.encode_images(PICTURE)
        return model.skill_transformer.roll_out(first, text[None], mask[None])[0], model.zero_image_tokens()


@pytest.fixture(scope="module")
def latents(server: Server) -> dict[str, list[torch.Tensor]]:
    """One prompt with every way of applying the tokens."""
    nodes: dict[str, dict] = {
        "applied": applied(),
        "weightless": applied(weight=0.0),
        "never": applied(start=1.0),
        "early": applied(end=0.4),
        "late": applied(start=0.4),
        "first": applied(step=1),
        "half": applied("once", weight=0.5),
        "once": applied(weight=0.5),
        "all": applied(step=0),
        "other": node("TestAnotherPatch", model=["model", 0]),
        "other_never": applied("other", end=0.0),
        "other_applied": applied("other"),
        "lora": node("LoraLoaderModelOnly", model=["model", 0], lora_name="tiny.safetensors", strength_model=1.0),
        "lora_applied": applied("lora"),
        "applied_lora": node(
            "LoraLoaderModelOnly", model=["applied", 0], lora_name="tiny.safetensors", strength_model=1.0
        ),
    }
    for name in ("model", *nodes):
        nodes |= drawn(name)
    return run(server, graph(**nodes))


def test_without_weight_or_out_of_its_time_the_model_is_the_bare_one_bit_for_bit(latents):
    bare = latents["model"][0]
    assert torch.equal(latents["weightless"][0], bare) and torch.equal(latents["never"][0], bare)
    assert apart(latents["applied"][0], bare) and apart(latents["first"][0], latents["applied"][0])


def test_the_same_tokens_give_the_same_picture_as_diffusers(latents, model, foreseen):
    tokens, empty = foreseen
    wanted = draw_with_diffusers(model, [tokens[1], empty])
    close(latents["applied"][0], wanted)
    swapped = draw_with_diffusers(model, [empty, tokens[1]])
    assert (swapped - wanted).abs().max() > 100 * TOLERANCE, "which row gets which tokens shows in the picture"
    assert (wanted[0] - wanted[1]).abs().max() > 0.1


def test_one_prediction_is_that_of_diffusers(server, model, foreseen):
    tokens, empty = foreseen
    nodes = {"applied": applied(), **drawn("applied", guidance=1.0)}
    nodes["applied.drawn"]["inputs"]["steps"] = 1
    got = run(server, graph(**nodes))["applied"][0]
    wanted = draw_with_diffusers(model, [tokens[1], empty], 1.0, updates=1)
    close(got, wanted)


def test_step_zero_gives_a_model_for_every_step(latents, model, foreseen):
    tokens, empty = foreseen
    assert len(latents["all"]) == len(TEXTS)
    assert torch.equal(latents["all"][0], latents["first"][0]) and torch.equal(latents["all"][1], latents["applied"][0])
    close(latents["all"][2], draw_with_diffusers(model, [tokens[2], empty]))


def test_in_a_full_size_sdxl_each_layer_goes_where_the_hosts_own_map_has_it(server):
    outputs = server.run(graph(applied=applied(), full=node("TestFullSize", after=["applied", 0])))
    places = json.loads(outputs["full"]["text"][0])
    ours = [
        [f"{block}.1.transformer_blocks.{index}.attn2.to_k.weight", shape]
        if block == "middle_block"
        else [f"{block}.{number}.1.transformer_blocks.{index}.attn2.to_k.weight", shape]
        for block, number, index, shape in places["ours"]
    ]
    assert ours == places["theirs"] and len(ours) == 70


def test_several_texts_for_one_picture_get_the_tokens_each(server, latents):
    nodes = {"applied": applied(), **drawn("applied", text="both")}
    nodes["both"] = node("ConditioningCombine", conditioning_1=["text", 0], conditioning_2=["text", 0])
    close(run(server, graph(**nodes))["applied"][0], latents["applied"][0] * SCALE)


def test_the_tokens_steer_for_a_part_of_the_sampling(latents, model, foreseen):
    tokens, empty = foreseen
    # The four updates begin at 0, a third, two thirds and the whole of the model's times.
    for name, steered in (("early", range(2)), ("late", range(2, 4))):
        close(latents[name][0], draw_with_diffusers(model, [tokens[1], empty], steered=steered))
        assert apart(latents[name][0], latents["model"][0]) and apart(latents[name][0], latents["applied"][0])


def test_the_model_that_came_in_stays_as_it_was(server):
    both = {**drawn("applied", 2.0), **drawn("model", 2.0)}
    other_file = {"fresh": node("TestSDXL", folder="./tiny", dtype="float32")}  # the same under another name
    server.run(graph(applied=applied(), **drawn("applied", 2.0)))
    got = run(server, graph(applied=applied(), **both, **other_file, **drawn("fresh", 2.0)))
    assert torch.equal(got["model"][0], got["fresh"][0]) and apart(got["model"][0], got["applied"][0])


def test_two_of_our_nodes_and_another_packs_patch_add_up(latents):
    torch.testing.assert_close(latents["half"][0], latents["applied"][0], atol=TOLERANCE / SCALE, rtol=0)
    assert apart(latents["other"][0], latents["model"][0])
    assert torch.equal(latents["other_never"][0], latents["other"][0])
    assert apart(latents["other_applied"][0], latents["other"][0])
    assert apart(latents["other_applied"][0], latents["applied"][0])


def adding(model: str, weight: float = 200.0, end: float = 1.0) -> dict:
    """A patch as the packs for IP-Adapter, InstantID and PuLID make it."""
    return node("TestAddingPatch", model=[model, 0], weight=weight, end_percent=end)


def test_packs_that_add_to_the_patch_they_find_may_stand_before_and_behind(server, latents):
    nodes = {
        "front": adding("model"),
        "front_applied": applied("front"),
        "both": adding("front_applied", weight=100.0),
        "alone": applied(),
        "behind": adding("alone"),
        "twice": adding("half", weight=100.0),
        "half": adding("alone", weight=100.0),
        "ended": adding("alone", end=0.0),
        "early": adding("alone", end=0.4),
        "again": applied("behind", step=1),
        "never": applied(start=1.0),
        "behind_never": adding("never"),
    }
    for name in list(nodes):
        nodes |= drawn(name)
    # A graph goes through its models in an order of its own; the one that came in is drawn last.
    server.run(graph(**{name: one for name, one in nodes.items() if not name.startswith("alone.")}))
    got = run(server, graph(**nodes))
    for name in ("front_applied", "twice"):
        torch.testing.assert_close(got["behind"][0], got[name][0], atol=TOLERANCE / SCALE, rtol=0)
    assert torch.equal(got["alone"][0], latents["applied"][0]) and torch.equal(got["ended"][0], got["alone"][0])
    assert torch.equal(got["behind_never"][0], got["front"][0])
    different = ("alone", "front", "behind", "half", "early", "both", "again")
    for one, other in itertools.combinations(different, 2):
        assert apart(got[one][0], got[other][0]), (one, other)


def test_a_lora_of_the_hosts_loader_works_before_and_behind(latents, base, foreseen):
    tokens, empty = foreseen
    assert torch.equal(latents["lora_applied"][0], latents["applied_lora"][0])
    assert apart(latents["lora_applied"][0], latents["applied"][0])
    changed = KeyStepModel.load(base / "models/ksgen/tiny/keysteps")
    with torch.no_grad():
        attention = changed.pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
        attention.to_v.weight += 0.01
        close(latents["lora_applied"][0], draw_with_diffusers(changed, [tokens[1], empty]))


def test_a_controlnet_works_beside_it(server, latents):
    nodes = {
        "applied": applied(),
        "never": applied(end=0.0),
        "net": node("TestControlNet", folder="tiny"),
        "hint": node(
            "ControlNetApplyAdvanced",
            **{"positive": ["text", 0], "negative": ["nothing", 0], "control_net": ["net", 0]},
            **{"image": ["picture", 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
        ),
    }
    for name in ("applied", "never", "model"):
        nodes |= drawn(name, text="hint")
        nodes[f"{name}.drawn"]["inputs"]["negative"] = ["hint", 1]
    got = run(server, graph(**nodes))
    assert torch.equal(got["never"][0], got["model"][0])
    assert apart(got["applied"][0], got["model"][0]) and apart(got["applied"][0], latents["applied"][0])


def test_texts_and_tokens_are_those_of_the_core(server, model, foreseen):
    prompt = graph(save=node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["text", 0], name="foreseen"))
    server.run(prompt)
    got = load_file(server.base / "output/foreseen.safetensors")
    with torch.no_grad():
        text, _, pooled = model.encode_texts([TEXTS[1]])
    wanted = {"tokens": foreseen[0], "empty": foreseen[1], "text": text, "pooled": pooled}
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert (got["tokens"][1] - got["tokens"][2]).abs().max() > 0.1


def test_brackets_clip_skip_and_long_texts_change_nothing_of_what_is_foreseen(server, model):
    texts = [TEXTS[0], "stir ((the)) tea", "pour " * 40]
    prompt = graph(
        plan="\n".join(texts),
        skip=node("CLIPSetLastLayer", clip=["clips", 0], stop_at_clip_layer=-1),
        save=node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["text", 0], name="brackets"),
    )
    prompt["tokens"]["inputs"]["clip"] = ["skip", 0]
    server.run(prompt)
    got = load_file(server.base / "output/brackets.safetensors")["tokens"]
    with torch.no_grad():
        text, mask, _ = model.encode_texts([text.strip() for text in texts])
        first = model.encode_images(PICTURE)
        wanted = model.skill_transformer.roll_out(first, text[None], mask[None])[0]
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def test_the_adapter_alone_gives_every_step_the_initial_picture(server, foreseen):
    prompt = graph(save=node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["text", 0], name="initial"))
    prompt["skill"]["inputs"]["skill_transformer"] = "none"
    prompt["tokens"]["inputs"]["policy"] = "initial picture"
    server.run(prompt)
    got = load_file(server.base / "output/initial.safetensors")["tokens"]
    torch.testing.assert_close(got, foreseen[0][:1].expand_as(got), atol=2e-5, rtol=1e-4)
    prompt["tokens"]["inputs"]["policy"] = "skill transformer"
    with pytest.raises(NodeFailed, match="There is no Skill Transformer to foresee with"):
        server.run(prompt)


def test_the_host_loads_the_adapter_with_the_model_and_frees_it(server):
    prompt = graph(applied=applied(), memory=node("TestMemory", after=["applied.drawn", 0]), **drawn("applied"))
    shown = json.loads(server.run(prompt)["memory"]["text"][0])
    size, loaded = shown[0]["IPAdapterLayers"]
    assert size == loaded > 10_000 and "SDXL" in shown[0]
    assert shown[1] == {}


def test_half_precision_follows_the_model(server, latents):
    got = run(server, graph(dtype="bfloat16", applied=applied(), **drawn("applied"), **drawn("model")))
    assert apart(got["applied"][0], got["model"][0])
    error = (got["applied"][0] - latents["applied"][0]).std() / latents["applied"][0].std()
    assert error < 0.1


def test_tokens_stand_behind_a_text_or_alone(server, foreseen):
    prompt = graph(
        behind=node("KSGenTokensToConditioning", image_tokens=["tokens", 0], step=2, conditioning=["text", 0]),
        alone=node("KSGenTokensToConditioning", image_tokens=["tokens", 0], step=2),
        joined=node("ConditioningConcat", conditioning_to=["text", 0], conditioning_from=["alone", 0]),
        one=node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["behind", 0], name="behind"),
        two=node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["joined", 0], name="joined"),
        three=node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["alone", 0], name="alone"),
        **drawn("model", text="behind"),
    )
    run(server, prompt)
    behind, joined, alone = (
        load_file(server.base / f"output/{name}.safetensors") for name in ("behind", "joined", "alone")
    )
    assert torch.equal(behind["text"], joined["text"]) and torch.equal(behind["pooled"], joined["pooled"])
    assert torch.equal(behind["text"][:, -SIZES.image_tokens :], alone["text"])
    torch.testing.assert_close(alone["text"][0], foreseen[0][1], atol=2e-5, rtol=1e-4)
    assert not alone["pooled"].any()


def test_what_does_not_fit_is_refused_with_got_and_wanted(server):
    save = node("TestSaveTokens", image_tokens=["tokens", 0], conditioning=["text", 0], name="refused")
    with pytest.raises(NodeFailed, match="The plan has 9 steps, the Skill Transformer was made for at most 8"):
        server.run(graph(plan="\n".join(f"stir {k} times" for k in range(9)), save=save))
    with pytest.raises(NodeFailed, match="Step 9 was asked for, but there are image tokens of 3 steps"):
        server.run(graph(applied=applied(step=9), **drawn("applied")))
    prompt = graph(save=save, many=node("RepeatImageBatch", image=["picture", 0], amount=2))
    prompt["tokens"]["inputs"]["image"] = ["many", 0]
    with pytest.raises(NodeFailed, match="One initial picture is wanted, got a batch of 2"):
        server.run(prompt)
    prompt = graph(save=save)
    prompt["skill"]["inputs"]["skill_transformer"] = "embedded"
    with pytest.raises(NodeFailed, match=r"\(32, 4, 32\) here, it was trained on \(256, 16, 256\)"):
        server.run(prompt)
    with pytest.raises(
        NodeFailed, match="not fit this MODEL, a QwenImage: it has 0 cross-attention layers, the adapter is"
    ):
        server.run(graph(qwen=node("TestQwenImage"), applied=applied("qwen"), **drawn("applied")))
    prompt = graph(save=save)
    prompt["skill"]["inputs"]["ip_adapter"] = "embedded"
    with pytest.raises(NodeFailed, match="takes states of width 128 from its image encoder, this CLIP_VISION gives 16"):
        server.run(prompt)
