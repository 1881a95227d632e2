"""The templates with a step loop run: the quickstart as it is, the others on tiny weights under the real names."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
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
    "clips-minimax-h3": 5,
}
"""The templates whose files are stood in for, with the frames of half a second by their models' own counts."""
SIZES = {
    "clips-wan22-i2v": (144, 80),
    "clips-wan22-first-last": (144, 80),
    "clips-ltx-2.3": (160, 64),
    "clips-minimax-h3": (160, 64),
}
"""Width and height of a wide picture with as few pixels as there may be, in multiples of 16 or 32."""
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
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with every file where the templates say that it belongs: tiny weights, or nothing in it."""
    base = new_base_folder(tmp_path_factory.mktemp("full") / "base")
    (base / "input").mkdir(exist_ok=True)
    Image.radial_gradient("L").convert("RGB").resize((256, 128)).save(base / "input" / WIDE)
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


@pytest.mark.parametrize("name", LARGE)
def test_files_are_found_where_a_template_says_that_they_belong(full: Server, name: str):
    """No file is left to be offered: every loader's list has it."""
    graph = copy.deepcopy(GRAPHS[name])
    assert any(one["properties"].pop("models", None) for one in graph["nodes"])
    assert problems_of(graph, full.get("/object_info"), full.get("/models")) == []


LITTLE = {"steps": 2, "sigmas": "1.0, 0.5, 0.0", "megapixels": 0.01}
WIDE = "wide.png"
"""A picture twice as wide as high."""


def little(server: Server, name: str, lines: list[str], seed: int) -> dict[str, dict]:
    """A template's prompt with stand-ins for what has no tiny file, a wide picture, few sampler steps, short clips.

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
        elif kind == "LoadImage":
            inputs["image"] = WIDE
        elif kind == "KSGenStepLoopStart":
            inputs |= {"seconds": 0.5, "seed": seed}
        elif kind in ("KSGenEditPlan", "KSGenPlanFromText"):
            inputs["text"] = "\n".join(lines)
        elif kind == "KSamplerAdvanced":  # 4 steps become 2
            inputs |= {"start_at_step": inputs["start_at_step"] // 2, "end_at_step": inputs["end_at_step"] // 2}
        if kind != "KSGenStepLoopStart":
            inputs |= {
                key: value for key, value in LITTLE.items() if key in inputs and not isinstance(inputs[key], list)
            }
    return prompt


def numbers_of(prompt: dict[str, dict], kind: str) -> list[str]:
    return [number for number, one in prompt.items() if one["class_type"] == kind]


def run(server: Server, prompt: dict[str, dict]) -> tuple[dict[str, Any], str]:
    """Run it; what it showed, and what the last loop says of its steps."""
    (*_, end) = numbers_of(prompt, "KSGenStepLoopEnd")
    outputs = server.run({**prompt, "report": node("PreviewAny", source=[end, 4])}, seconds=900)
    return outputs, outputs["report"]["text"][0]


def run_clips(server: Server, prompt: dict[str, dict]) -> tuple[list[Path], Path, str]:
    """Each step's video, the film, and what the last loop says of its steps."""
    (*_, end), (save,) = numbers_of(prompt, "KSGenStepLoopEnd"), numbers_of(prompt, "KSGenSaveFilm")
    each = node("SaveVideo", video=[end, 3], filename_prefix="each", format="mkv", codec="auto")
    outputs, report = run(server, {**prompt, "each": each})
    clips = [server.file(shown) for shown in outputs["each"]["images"]]
    return clips, server.file(outputs[save]["images"][0]), report


def run_key_images(server: Server, prompt: dict[str, dict]) -> tuple[list[Image.Image], str]:
    outputs, report = run(server, prompt)
    (save,) = numbers_of(prompt, "SaveImage")
    return [Image.open(server.file(shown)).convert("RGB") for shown in outputs[save]["images"]], report


def frames_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]


def repeated(prompt: dict[str, dict]) -> int:
    """How many frames in all the film leaves out, as each clip but the first repeats them of the one before."""
    (save,) = numbers_of(prompt, "KSGenSaveFilm")
    return prompt[save]["inputs"].get("overlap", 0) * (len(LINES) - 1)


def chapters_of(path: Path) -> list[str]:
    with av.open(str(path)) as file:
        return [chapter["metadata"]["title"] for chapter in file.chapters()]


def size_of(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as file:
        return file.streams.video[0].width, file.streams.video[0].height


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as file:
        frames = [frame for frame in file.decode(audio=0)] if file.streams.audio else []
    return sum(frame.samples / frame.sample_rate for frame in frames)


@pytest.mark.parametrize("name", [name for name, frames in LARGE.items() if frames])
def test_a_template_makes_a_clip_of_every_step_and_remembers_it(full: Server, name: str):
    prompt = little(full, name, LINES, seed=1)
    clips, film, report = run_clips(full, prompt)
    first = [frames_of(clip) for clip in clips]
    assert [len(frames) for frames in first] == [LARGE[name]] * len(LINES)
    assert len({b"".join(frames) for frames in first}) == len(LINES)
    assert report == "3 steps: 0 remembered, 3 made."
    assert {size_of(path) for path in (*clips, film)} == {SIZES[name]}, "the picture's shape"
    assert repeated(prompt) == len(LINES) - 1, "each clip begins with the picture on which the one before ends"
    assert len(frames_of(film)) == LARGE[name] * len(LINES) - repeated(prompt)
    assert chapters_of(film) == [f"{number}. {line}" for number, line in enumerate(LINES, 1)]

    clips, _, report = run_clips(full, little(full, name, [*LINES[:2], "drink"], seed=1))
    assert report == "3 steps: 2 remembered, 1 made."
    again = [frames_of(clip) for clip in clips]
    assert again[:2] == first[:2] and again[2] != first[2]


def test_another_strength_of_a_lora_or_another_file_of_it_makes_every_step_anew(full: Server):
    def prompt(strength: float) -> dict[str, dict]:
        changed = little(full, "clips-wan22-i2v", LINES, seed=5)
        for one in changed.values():
            if one["class_type"] == "LoraLoaderModelOnly":
                one["inputs"]["strength_model"] = strength
        return changed

    def report(strength: float) -> str:
        return run_clips(full, prompt(strength))[2]

    assert report(1.0) == report(0.5) == "3 steps: 0 remembered, 3 made."
    name = next(one["inputs"]["lora_name"] for one in prompt(1.0).values() if "lora_name" in one["inputs"])
    path = full.base / "models" / "loras" / name
    former = path.stat()
    os.utime(path, ns=(former.st_atime_ns, former.st_mtime_ns + 10**9))  # as after it was fetched again
    try:
        assert report(1.0) == "3 steps: 0 remembered, 3 made."
    finally:
        os.utime(path, ns=(former.st_atime_ns, former.st_mtime_ns))
    full.post("/free", {"free_memory": True})  # so that the host looks at the loop again
    assert report(0.5) == "3 steps: 3 remembered, 0 made."


@pytest.mark.parametrize("name", ["clips-ltx-2.3", "clips-minimax-h3"])
def test_the_sound_of_the_clips_is_in_the_film(full: Server, name: str):
    clips, film, _ = run_clips(full, little(full, name, LINES[:2], seed=1))
    seconds = LARGE[name] / 24
    assert [sound_seconds(clip) for clip in clips] == pytest.approx([seconds] * 2, abs=0.1)
    assert sound_seconds(film) == pytest.approx(2 * seconds, abs=0.1)


# Qwen-Image's own nodes scale each reference to a million pixels, which takes a processor a while.
@pytest.mark.parametrize(("name", "count"), [("key-images-qwen-edit", 2), ("key-images-flux2-klein", 3)])
def test_a_template_makes_a_key_image_of_every_step(full: Server, name: str, count: int):
    pictures, report = run_key_images(full, little(full, name, LINES[:count], seed=2))
    assert len(pictures) == count and len({picture.size for picture in pictures}) == 1
    assert len({picture.tobytes() for picture in pictures}) == count
    assert report == f"{count} steps: 0 remembered, {count - 1} made, the first is the initial picture."


def test_a_key_image_shows_what_was_done_in_the_step_before(full: Server):
    """Another text of step 2 is another picture before step 3, and only that one is drawn anew."""
    name = "key-images-flux2-klein"
    before, _ = run_key_images(full, little(full, name, LINES, seed=3))
    after, report = run_key_images(full, little(full, name, [LINES[0], "pour it away", LINES[2]], seed=3))
    same = [one.tobytes() == other.tobytes() for one, other in zip(before, after, strict=True)]
    assert same == [True, True, False]
    assert report == "3 steps: 1 remembered, 1 made, the first is the initial picture."


def test_the_quickstart_runs_to_its_film_with_the_embedded_models(server: Server):
    clips, film, report = run_clips(server, prompt_of(GRAPHS["quickstart-loop"], server.get("/object_info")))
    assert len(clips) >= 3 and {len(frames_of(clip)) for clip in clips} == {17}
    assert report == f"{len(clips)} steps: 0 remembered, {len(clips)} made."
    assert len(frames_of(film)) == 17 * len(clips)
