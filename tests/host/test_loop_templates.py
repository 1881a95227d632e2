"""Every template holds what the server says of its nodes; those with a step loop run, on tiny weights where the real
ones have gigabytes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from check_template import problems_of
from comfy_server import REPO, Server, new_base_folder, run_in_host
from graph import prompt_of
from PIL import Image
from test_run import node

HERE = Path(__file__).parent
GRAPHS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (REPO / "workflows").glob("*.json")}
LARGE = {
    "key-images-qwen-edit": None,
    "key-images-flux2-klein": None,
    "clips-wan22-i2v": 9,
    "clips-wan22-first-last": 9,
    "clips-ltx-2.3": 9,
    "clips-minimax-h3": 22,
}
"""The templates whose files are stood in for, with the frames of half a second by their models' own counts."""
LINES = ["boil the water", "pour it into the mug", "stir"]

# A beginning of a file's name -> who builds it in tiny_native.py. Text encoders, and Qwen-Image itself, have nodes.
BUILDERS = {
    "wan2.2_i2v_high_noise": "wan",
    "wan2.2_i2v_low_noise": "wan_other",
    "wan2.2_i2v_lightx2v": "wan_lora",
    "wan_2.1_vae": "wan_vae",
    "qwen_image_vae": "wan_vae",
    "Qwen-Image-Edit-2511-Lightning": "qwen_lora",
    "flux-2-klein": "flux2",
    "flux2-vae": "flux2_vae",
    "ltx-2.3-22b": "ltxav",
    "minimax_h3_fl2va": "minimax",
    "minimax_h3_fl2v_turbo": "minimax_lora",
    "minimax_h3_video_vae": "minimax_vae",
    "minimax_h3_audio_vae": "minimax_audio_vae",
}


def models_of(name: str) -> list[dict[str, str]]:
    return [model for one in GRAPHS[name]["nodes"] for model in one["properties"].get("models", [])]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A fresh install without a single file of the templates' models."""
    server = Server(new_base_folder(tmp_path_factory.mktemp("fresh") / "base"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with every file where the templates say that it belongs: tiny weights, or nothing in it."""
    base = new_base_folder(tmp_path_factory.mktemp("full") / "base")
    shutil.copy(HERE / "any_text_encoder.py", base / "custom_nodes")
    job = {}
    for model in [model for name in LARGE for model in models_of(name)]:
        file = f"{model['directory']}/{model['name']}"
        builder = [made for start, made in BUILDERS.items() if model["name"].startswith(start)]
        if builder:
            (job[file],) = builder
        (base / "models" / file).parent.mkdir(exist_ok=True)
        (base / "models" / file).touch()
    run_in_host(HERE / "tiny_native.py", str(base / "models"), json.dumps(job))
    server = Server(base)
    yield server
    server.stop()
    shutil.rmtree(base / "models")  # hundreds of megabytes, by the fixed sizes of two autoencoders


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_template_holds_what_the_server_says_of_its_nodes(server: Server, name: str):
    assert problems_of(GRAPHS[name], server.get("/object_info"), server.get("/models")) == []


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_template_has_a_thumbnail_that_is_small(name: str):
    path = REPO / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)
    assert path.stat().st_size < 30_000


def only(graph: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(one for one in graph["nodes"] if one["type"] == kind)


def socket(graph: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in only(graph, kind)["inputs"] if one["name"] == name)


def link_to(graph: dict[str, Any], kind: str, name: str) -> list[Any]:
    return next(link for link in graph["links"] if link[0] == socket(graph, kind, name)["link"])


def widget(kind: str, number: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        only(graph, kind)["widgets_values"][number] = value

    return change


def model(key: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        only(graph, "VAELoader")["properties"]["models"][0][key] = value

    return change


def cut(graph: dict[str, Any]) -> None:
    link = link_to(graph, "WanImageToVideo", "vae")
    graph["links"].remove(link)
    socket(graph, "WanImageToVideo", "vae")["link"] = None
    for output in only(graph, "VAELoader")["outputs"]:
        output["links"] = [number for number in output["links"] if number != link[0]]


def swap(graph: dict[str, Any]) -> None:
    """The picture into the text's place and the text into the picture's."""
    one, other = link_to(graph, "WanImageToVideo", "start_image"), link_to(graph, "CLIPTextEncode", "clip")
    socket(graph, "WanImageToVideo", "start_image")["link"], socket(graph, "CLIPTextEncode", "clip")["link"] = (
        other[0],
        one[0],
    )
    one[3:5], other[3:5] = other[3:5], one[3:5]


BROKEN = {
    "a node that is nowhere": (lambda graph: only(graph, "VAEDecode").update(type="VAEDecoder"), "has no such node"),
    "a widget value too few": (lambda graph: only(graph, "KSamplerAdvanced")["widgets_values"].pop(), "too few"),
    "a widget value too many": (lambda graph: only(graph, "VAELoader")["widgets_values"].append(1), "too many"),
    "a sampler that is nowhere": (widget("KSamplerAdvanced", 5, "eulr"), "sampler_name: 'eulr' is no choice"),
    "a planner that is nowhere": (widget("KSGenPlanSkill", 1, "guess"), "planner: 'guess' is no choice"),
    "a number out of range": (widget("KSamplerAdvanced", 3, 0), "steps: 0 is not within"),
    "a number inside a choice": (widget("KSGenPlanSkill", 2, 100), "planner.fewest: 100 is not within"),
    "a number between the steps": (widget("WanImageToVideo", 0, 641), "width: 641 is none of the steps"),
    "a number that is none": (widget("ModelSamplingSD3", 0, "5"), "shift: '5' is no FLOAT"),
    "a truth for a number": (widget("KSamplerAdvanced", 3, True), "steps: True is no INT"),
    "a number for a text": (widget("CLIPTextEncode", 0, 7), "text: 7 is no STRING"),
    "no word after a seed": (widget("KSGenStepLoopStart", 3, 7), "seed, after a run: 7 is no choice"),
    "a file that is not offered": (widget("VAELoader", 0, "other.safetensors"), "'other.safetensors' is no choice"),
    "an offer that is not used": (widget("VAELoader", 0, "other.safetensors"), "no widget has this file"),
    "a link to another file": (model("url", "https://huggingface.co/a/b/resolve/main/c"), "is no link to this file"),
    "a link to a page": (model("url", "https://huggingface.co/a/b/blob/main/wan_2.1_vae.safetensors"), "is no link"),
    "a folder that is nowhere": (model("directory", "vaes"), "has no model folder vaes"),
    "a required input without a link": (cut, "vae: nothing is connected"),
    "links in each other's place": (swap, "does not fit"),
    "a type that the output has not": (
        lambda graph: link_to(graph, "WanImageToVideo", "vae").__setitem__(5, "MODEL"),
        "but the output gives VAE",
    ),
    "an output of another type": (
        lambda graph: only(graph, "VAELoader")["outputs"][0].update(type="CLIP"),
        "output 0: a CLIP here, a VAE there",
    ),
    "an input that is nowhere": (
        lambda graph: socket(graph, "WanImageToVideo", "vae").update(name="autoencoder"),
        "autoencoder: the server has no such input",
    ),
    "an input of another type": (
        lambda graph: socket(graph, "WanImageToVideo", "vae").update(type="CLIP"),
        "vae: a CLIP here, a VAE there",
    ),
    "a link that one end forgot": (
        lambda graph: socket(graph, "WanImageToVideo", "vae").update(link=None),
        "the input does not know of it",
    ),
    "a link that the graph forgot": (
        lambda graph: graph["links"].remove(link_to(graph, "WanImageToVideo", "vae")),
        "its ends know of it",
    ),
    "no note": (
        lambda graph: graph["nodes"].remove(only(graph, "MarkdownNote")),
        "there is no note",
    ),
    "a note without the links": (widget("MarkdownNote", 0, "models/vae"), "the note has no link to it"),
    "a note without the folders": (widget("MarkdownNote", 0, ""), "the note does not name its folder"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_in_a_template_is_found(server: Server, what: str):
    graph = copy.deepcopy(GRAPHS["clips-wan22-i2v"])
    change, words = BROKEN[what]
    change(graph)
    problems = problems_of(graph, server.get("/object_info"), server.get("/models"))
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize("name", LARGE)
def test_files_are_found_where_a_template_says_that_they_belong(full: Server, name: str):
    """No file is left to be offered: every loader's list has it."""
    graph = copy.deepcopy(GRAPHS[name])
    assert any(one["properties"].pop("models", None) for one in graph["nodes"])
    assert problems_of(graph, full.get("/object_info"), full.get("/models")) == []


LITTLE = {"steps": 2, "sigmas": "1.0, 0.5, 0.0", "megapixels": 0.02}
SIZED = ("WanImageToVideo", "WanFirstLastFrameToVideo", "EmptyLTXVLatentVideo", "MiniMaxH3ImageToVideo")


def little(server: Server, name: str, lines: list[str], seed: int) -> dict[str, dict]:
    """A template's prompt with stand-ins for what has no tiny file, little pictures, few sampler steps, short clips.

    The steps are `lines`, and with a `seed` of its own a test remembers nothing of another one's.
    """
    prompt = prompt_of(GRAPHS[name], server.get("/object_info"))
    for one in prompt.values():
        kind, inputs = one["class_type"], one["inputs"]
        if kind in ("CLIPLoader", "LTXAVTextEncoderLoader"):
            one |= node("TestAnyTextEncoder")
        elif kind == "UNETLoader" and inputs["unet_name"].startswith("qwen"):
            one |= node("TestQwenImage")
        elif kind == "FluxKontextImageScale":  # a million pixels, always
            one |= node("ImageScale", image=inputs["image"], upscale_method="area", width=64, height=64, crop="center")
        elif kind == "KSGenStepLoopStart":
            inputs |= {"seconds": 0.5, "seed": seed}
        elif kind in ("KSGenEditPlan", "KSGenPlanFromText"):
            inputs["text"] = "\n".join(lines)
        elif kind == "KSamplerAdvanced":  # 4 steps become 2
            inputs |= {"start_at_step": inputs["start_at_step"] // 2, "end_at_step": inputs["end_at_step"] // 2}
        if kind in SIZED:
            inputs |= {"width": 64, "height": 64}
        if kind != "KSGenStepLoopStart":
            inputs |= {
                key: value for key, value in LITTLE.items() if key in inputs and not isinstance(inputs[key], list)
            }
    return prompt


def numbers_of(prompt: dict[str, dict], kind: str) -> list[str]:
    return [number for number, one in prompt.items() if one["class_type"] == kind]


def reports(prompt: dict[str, dict], outputs: dict[str, Any]) -> list[str]:
    return [outputs[number]["text"][0] for number in numbers_of(prompt, "PreviewAny")]


def run_clips(server: Server, prompt: dict[str, dict]) -> tuple[dict[str, Any], list[Path]]:
    """Run it; what it showed, and each step's video."""
    (*_, end) = numbers_of(prompt, "KSGenStepLoopEnd")
    prompt = {**prompt, "each": node("SaveVideo", video=[end, 3], filename_prefix="each", format="mkv", codec="auto")}
    outputs = server.run(prompt, seconds=600)
    return outputs, [server.file(shown) for shown in outputs["each"]["images"]]


def frames_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as file:
        frames = [frame for frame in file.decode(audio=0)] if file.streams.audio else []
    return sum(frame.samples / frame.sample_rate for frame in frames)


@pytest.mark.parametrize("name", [name for name, frames in LARGE.items() if frames])
def test_a_template_makes_a_clip_of_every_step(full: Server, name: str):
    prompt = little(full, name, LINES, seed=1)
    outputs, clips = run_clips(full, prompt)
    films = [frames_of(clip) for clip in clips]
    assert [len(film) for film in films] == [LARGE[name]] * len(LINES)
    assert len({b"".join(film) for film in films}) == len(LINES)
    assert reports(prompt, outputs) == ["3 steps: 0 remembered, 3 made."]
    (save,) = numbers_of(prompt, "SaveVideo")
    assert len(frames_of(full.file(outputs[save]["images"][0]))) == LARGE[name] * len(LINES)

    outputs, clips = run_clips(full, little(full, name, [*LINES[:2], "drink"], seed=1))
    assert reports(prompt, outputs) == ["3 steps: 2 remembered, 1 made."]
    assert [frames_of(clip) for clip in clips[:2]] == films[:2]
    assert frames_of(clips[2]) != films[2]


@pytest.mark.parametrize("name", ["clips-ltx-2.3", "clips-minimax-h3"])
def test_the_sound_of_the_clips_is_in_the_film(full: Server, name: str):
    prompt = little(full, name, LINES[:2], seed=1)
    outputs, clips = run_clips(full, prompt)
    seconds = LARGE[name] / 24
    assert [sound_seconds(clip) for clip in clips] == pytest.approx([seconds] * 2, abs=0.1)
    (save,) = numbers_of(prompt, "SaveVideo")
    assert sound_seconds(full.file(outputs[save]["images"][0])) == pytest.approx(2 * seconds, abs=0.1)


# Qwen-Image's own nodes scale each reference to a million pixels, which takes a processor a while.
@pytest.mark.parametrize(("name", "count"), [("key-images-qwen-edit", 2), ("key-images-flux2-klein", 3)])
def test_a_template_makes_a_key_image_of_every_step(full: Server, name: str, count: int):
    prompt = little(full, name, LINES[:count], seed=2)
    outputs = full.run(prompt, seconds=600)
    (save,) = numbers_of(prompt, "SaveImage")
    pictures = [Image.open(full.file(shown)).convert("RGB") for shown in outputs[save]["images"]]
    assert len(pictures) == count and len({picture.size for picture in pictures}) == 1
    assert len({picture.tobytes() for picture in pictures}) == count
    made = f"{count - 1} made, the first is the initial picture."
    assert reports(prompt, outputs) == [f"{count} steps: 0 remembered, {made}"]


def test_a_key_image_shows_what_was_done_in_the_step_before(full: Server):
    """Another text of step 2 is another picture before step 3, and only that one is drawn anew."""
    name, before = "key-images-flux2-klein", LINES
    after = [LINES[0], "pour it away", LINES[2]]
    shown = []
    for lines in (before, after):
        prompt = little(full, name, lines, seed=3)
        outputs = full.run(prompt, seconds=600)
        (save,) = numbers_of(prompt, "SaveImage")
        shown.append([full.file(one).read_bytes()[-4000:] for one in outputs[save]["images"]])
    assert reports(prompt, outputs) == ["3 steps: 1 remembered, 1 made, the first is the initial picture."]


def test_the_quickstart_runs_to_its_film_on_a_fresh_install(server: Server):
    prompt = prompt_of(GRAPHS["quickstart-loop"], server.get("/object_info"))
    outputs, clips = run_clips(server, prompt)
    (save,) = numbers_of(prompt, "SaveVideo")
    assert len(clips) >= 3 and {len(frames_of(clip)) for clip in clips} == {17}
    assert reports(prompt, outputs) == [f"{len(clips)} steps: 0 remembered, {len(clips)} made."]
    assert len(frames_of(server.file(outputs[save]["images"][0]))) == 17 * len(clips)
