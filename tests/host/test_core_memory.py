"""Components of full-size models in a real ComfyUI: the host sees, loads and frees each; nothing stays behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from comfy_server import Server, new_base_folder, run_in_host
from core_graphs import PARTS, drawing, drawn, graph, kept, loading, rendered, rendering, run
from test_run import Prompt, node

pytest_plugins = ["core_fixtures"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

HERE = Path(__file__).parent
MEGABYTE = 2**20
RSS_ROOM = 24 * MEGABYTE
"""What the process may hold more than before. Measured: at most 9 MB; of tensors there are as many, to the byte."""
PIPELINE = "ksgen-pipeline"
"""The thread in which a diffusers pipeline works."""


def watch(server: Server, hold: int = 0) -> None:
    server.post("/test/watch", {"hold": hold})


def seen(server: Server) -> dict:
    return server.get("/test/seen")


def until(server: Server, true, seconds: float = 120) -> dict:
    """What was seen when it is `true` of it."""
    end = time.monotonic() + seconds
    while not true(told := seen(server)):
        assert time.monotonic() < end, told
        time.sleep(0.05)
    return told


def tensors(told: dict) -> tuple[int, int]:
    """How many there were, and their bytes."""
    return told["tensors"], told["tensor_bytes"]


def free(server: Server, forget: bool = False) -> dict:
    """Let the host unload all models, as its button does; with `forget` what nodes made too, so our models as well."""
    server.post("/free", {"unload_models": True, "free_memory": forget})
    return until(server, lambda told: not told["now_loaded"])


def order(told: dict) -> list[str]:
    """The components in the order in which the host was asked for them."""
    return [name for load in told["loads"] for name in load["asked"]]


WAN = {"UMT5EncoderModel": 1, "AutoencoderKLWan": 1, "WanTransformer3DModel": 2}
SDXL = {
    **{"CLIPTextModel": 1, "CLIPTextModelWithProjection": 1, "CLIPVisionModelWithProjection": 1},
    **{"UNet2DConditionModel": 1, "AutoencoderKL": 1, "SkillTransformer": 1},
}


@pytest.mark.parametrize("stage", ["draw", "render"])
def test_every_component_has_an_entry_in_the_hosts_list_and_free_frees_them(core_server: Server, stage: str):
    def make(seed: int) -> torch.Tensor:
        if stage == "draw":
            return drawn(core_server, models={"key": "sdxl", **PARTS}, seed=seed)
        return rendered(core_server, "wan14", updates=4, seed=seed)

    free(core_server, forget=True)
    watch(core_server)
    first = make(31)
    told = seen(core_server)
    for name, number in (SDXL if stage == "draw" else WAN).items():
        assert told["now_loaded"].count(name) == number, name
    asked = order(told)
    backbone = "UNet2DConditionModel" if stage == "draw" else "WanTransformer3DModel"
    for encoder in [name for name in asked if name.startswith(("CLIP", "UMT5"))]:
        assert asked.index(encoder) < asked.index(backbone)
        assert encoder not in asked[asked.index(backbone) :], "texts and pictures are encoded before the sampling"
    free(core_server)
    make(32)
    assert make(31).equal(first)


def test_the_host_is_told_how_much_the_backbone_computes_with(core_server: Server):
    free(core_server, forget=True)
    rooms = []
    for side in (64, 128):
        watch(core_server)
        rendered(core_server, "wan14", width=side, height=side, seed=41)
        loads = seen(core_server)["loads"]
        rooms.append({load["memory_required"] for load in loads if load["asked"] == ["WanTransformer3DModel"]})
    ((small,), (large,)) = rooms
    assert large == 4 * small > 0, "four times as many tokens"


@pytest.fixture(scope="module")
def native(core_base: Path) -> None:
    """Wan in the host's own format."""
    job = '{"diffusion_models/wan.safetensors": "wan", "vae/wan_vae.safetensors": "wan_vae"}'
    run_in_host(HERE / "tiny_native.py", str(core_base / "models"), job)


def native_clip(name: str, start: list, seed: int) -> dict[str, dict]:
    """A clip by the host's own nodes, from the picture `start`."""
    return {
        f"{name}.wan": node(
            "WanImageToVideo",
            **{"positive": ["text", 0], "negative": ["text", 0], "vae": ["vae", 0], "start_image": start},
            **{"width": 64, "height": 64, "length": 5, "batch_size": 1},
        ),
        f"{name}.sampled": node(
            "KSampler",
            **{"model": ["unet", 0], "positive": [f"{name}.wan", 0], "negative": [f"{name}.wan", 1]},
            **{"latent_image": [f"{name}.wan", 2], "seed": seed, "steps": 2, "cfg": 1.0, "sampler_name": "euler"},
            **{"scheduler": "simple", "denoise": 1.0},
        ),
        name: node("VAEDecode", samples=[f"{name}.sampled", 0], vae=["vae", 0]),
        **kept(name),
    }


def in_turns(seed: int) -> Prompt:
    """Ours draws, the host's renders, ours renders from what it made, the host's from what ours did."""
    return graph(
        unet=node("UNETLoader", unet_name="wan.safetensors", weight_dtype="default"),
        vae=node("VAELoader", vae_name="wan_vae.safetensors"),
        clip=node("TestAnyTextEncoder"),
        text=node("CLIPTextEncode", clip=["clip", 0], text="pour"),
        models=loading("sdxl", "video/wan5", **PARTS),
        draw=drawing(seed=seed),
        **native_clip("one", ["draw", 0], seed),
        starts=node("ImageFromBatch", image=["one", 0], batch_index=0, length=2),
        render=rendering("wan5", plan=["draw", 1], key_images=["starts", 0], seed=seed),
        **native_clip("two", ["render", 1], seed + 1),
        **kept("draw"),
        **kept("render", 1),
    )


def test_our_models_and_the_hosts_own_work_in_turns(core_server: Server, native):
    free(core_server)
    watch(core_server)
    first = run(core_server, in_turns(51))
    asked = order(seen(core_server))
    turns = [asked.index("UNet2DConditionModel"), asked.index("WAN21"), asked.index("WanTransformer3DModel")]
    assert turns == sorted(turns) and "WAN21" in asked[turns[2] :]
    assert all(images.isfinite().all() and images.std() > 0 for images in first.values())
    run(core_server, in_turns(52))
    free(core_server)
    again = run(core_server, in_turns(51))
    assert all(again[name].equal(images) for name, images in first.items())


CANCELLED = {
    "drawing": ("sdxl", lambda **more: graph(models=loading("sdxl", **PARTS), work=drawing(guidance=1.0, **more))),
    "editing": ("flux-kontext", lambda **more: graph(models=loading("flux-kontext"), work=drawing(**more))),
    **{
        f"rendering {kind}": (
            kind,
            lambda kind=kind, **more: graph(models=loading(clip=f"video/{kind}"), work=rendering(kind, **more)),
        )
        for kind in ("wan14", "ltx", "hunyuan", "cogvideox", "svd")
    },
}


@pytest.mark.parametrize("stage", CANCELLED)
def test_cancelled_within_one_update_and_nothing_stays(core_server: Server, stage: str):
    _, new = CANCELLED[stage]
    output = 1 if stage.startswith("rendering") else 0

    def made(seed: int) -> torch.Tensor:
        return run(core_server, new(seed=seed, updates=3) | kept("work", output))["work"]

    unbroken = made(61)
    made(62)
    before = seen(core_server)
    watch(core_server, hold=2)
    prompt_id = core_server.queue(new(seed=61, updates=50) | kept("work", output))
    held = until(core_server, lambda told: told["held"])
    assert (PIPELINE in held["threads"]) == (stage != "drawing")
    core_server.post("/interrupt", {})
    status = core_server.wait(prompt_id)["status"]
    assert [kind for kind, _ in status["messages"]][-1] == "execution_interrupted"
    after = seen(core_server)
    assert after["updates"] >= 2 and after["updates_after"] <= 1, "of nearly 50 to come"
    assert PIPELINE not in after["threads"]
    assert tensors(after) == tensors(before)
    assert after["bytes"] - before["bytes"] <= RSS_ROOM
    watch(core_server)
    assert made(61).equal(unbroken)
    assert seen(core_server)["updates"], "it was made again"


def test_models_that_are_no_longer_wanted_leave(core_server: Server):
    def with_lora(strength: float) -> tuple[int, int]:
        lora = node(
            "KSGenLoadLora", models=["models", 0], lora="wan_high.safetensors", put_on="clip model", strength=strength
        )
        run(
            core_server,
            graph(models=loading(clip="video/wan14"), lora=lora, r=rendering("wan14", "lora"), **kept("r", 1)),
        )
        return tensors(seen(core_server))

    first = with_lora(0.5)
    for strength in (0.6, 0.7, 0.8):
        assert with_lora(strength) == first


def test_twenty_runs_need_no_more_memory_than_five(core_server: Server):
    folder = Path(f"/proc/{core_server.process.pid}")

    def peak() -> int:
        return int((folder / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    peaks, held = [], []
    (folder / "clear_refs").write_text("5")  # proc(5): the peak begins anew
    for number in range(20):
        prompt = graph(
            models=loading("sdxl", "video/wan5", **PARTS),
            draw=drawing(seed=100 + number),
            render=rendering("wan5", plan=["draw", 1], key_images=["draw", 0], seed=number),
            **kept("render", 1),
        )
        run(core_server, prompt)
        told = seen(core_server)
        peaks.append(peak())
        held.append(tensors(told))
    assert held[-1] == held[4]
    assert peaks[-1] - peaks[4] <= RSS_ROOM, [round(one / MEGABYTE) for one in peaks]


@pytest.fixture(scope="module")
def ran_out(tmp_path_factory: pytest.TempPathFactory) -> dict:
    base = new_base_folder(tmp_path_factory.mktemp("memory") / "base")
    return run_in_host(HERE / "run_out_of_memory.py", str(base))


def test_when_memory_runs_out_in_the_host_less_is_taken_and_the_log_tells(ran_out):
    once, twice = ran_out["once"], ran_out["twice"]
    assert once["same"] is True and once["tiling"] and once["offload"] == "parts" and len(once["told"]) == 1
    assert once["told"][0].startswith("render, step 1: memory ran out, now ")
    assert twice["same"] is True and twice["offload"] == "layers" and len(twice["told"]) == 2
    assert once["backbone_loaded"] and not twice["backbone_loaded"], "what brings its own layers the host does not load"
    assert "not enough memory" in ran_out["always"]["same"] and len(ran_out["always"]["told"]) == 3


def test_a_component_is_loaded_whole_where_there_is_little_memory(ran_out):
    """The host would leave a part behind, which only its own layers fetch while they compute."""
    assert ran_out["lies"] == dict.fromkeys(("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM"), ["meta"])


def test_models_that_nobody_holds_are_gone_before_others_are_loaded(ran_out):
    assert ran_out["gone"] is True


def test_other_models_leave_main_memory_only_where_it_is_too_short_for_the_next(ran_out):
    assert ran_out["held"] == {"room": [True] * 3, "short": [False] * 3}


def test_pictures_that_do_not_fit_together_are_drawn_in_halves_in_the_host(ran_out):
    assert ran_out["halves"]["same"] is True
    assert len(ran_out["halves"]["told"]) == 1 and ran_out["halves"]["told"][0].startswith("draw, step 2, 3")
