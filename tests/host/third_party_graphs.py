"""Step loops whose bodies are nodes of ComfyUI-KJNodes, ComfyUI-VideoHelperSuite and rgthree-comfy."""

from __future__ import annotations

from loop_graphs import loop
from test_run import Prompt, node


def own_body(texts: list[str], seed: int, name: str) -> Prompt:
    """A loop around a picture of the input folder; the nodes `label` and, for all but one, `frames` are to be added."""
    prompt = loop(texts, start={"seed": seed, "name": name}, noise={"image": ["frames", 0]})
    del prompt["draw"], prompt["frames"], prompt["gate"]
    return prompt | {"picture": node("LoadImage", image="paper.png")}


def label(image: list) -> dict:
    """KJNodes' label with the step's text above a picture: 64x48 becomes 64x64."""
    settings = {"text_x": 2, "text_y": 2, "height": 16, "font_size": 12, "direction": "up", "font": "FreeMono.ttf"}
    return node("AddLabel", image=image, text=["start", 1], font_color="white", label_color="black", **settings)


def combine(images: list, **inputs) -> dict:
    """VideoHelperSuite's 'Video Combine' at the loop's rate."""
    settings = {
        "frame_rate": ["start", 13],
        "loop_count": 0,
        "filename_prefix": "test/vhs",
        "format": "video/h264-mp4",
        "pingpong": False,
        "save_output": True,
        "pix_fmt": "yuv420p",
        "crf": 19,
        "save_metadata": True,
        "trim_to_audio": False,
    }
    return node("VHS_VideoCombine", images=images, **{**settings, **inputs})


def kj_pictures(texts: list[str], seed: int, name: str = "") -> Prompt:
    """Label, size and colours of the initial picture. The resize knows its id, the switch asks for what it needs."""
    settings = {
        "width": 96,
        "height": 80,
        "upscale_method": "lanczos",
        "keep_proportion": "pad",
        "pad_color": "0, 0, 0",
        "crop_position": "center",
        "divisible_by": 2,
        "device": "cpu",
    }
    return own_body(texts, seed, name) | {
        "label": label(["start", 7]),
        "resize": node("ImageResizeKJv2", image=["label", 0], **settings),
        "match": node("ColorMatch", image_ref=["start", 7], image_target=["resize", 0], method="mkl", strength=0.5),
        "switch": node("LazySwitchKJ", switch=["start", 16], on_true=["resize", 0], on_false=["match", 0]),
        "frames": node("ImageBatchRepeatInterleaving", images=["switch", 0], repeats=["start", 12]),
    }


def vhs_file(texts: list[str], seed: int, name: str = "") -> Prompt:
    """The file of 'Video Combine', with sound, is the result."""
    return own_body(texts, seed, name) | {
        "label": label(["start", 7]),
        "frames": node("VHS_DuplicateImages", images=["label", 0], multiply_by=["start", 12]),
        "sound": node("EmptyAudio", duration=2.0, sample_rate=44100, channels=2),
        "combine": combine(["noise", 0], audio=["sound", 0]),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["combine", 0]),
    }


def vhs_beside(texts: list[str], seed: int, name: str = "") -> Prompt:
    """'Video Combine' saves every step beside the result, and the files that it leaves on its way are removed."""
    prompt = vhs_file(texts, seed, name)
    prompt["end"]["inputs"]["result"] = ["noise", 0]
    prompt["prune"] = node("VHS_PruneOutputs", filenames=["combine", 0], options="Intermediate and Utility")
    return prompt


def vhs_driven(texts: list[str], seed: int, name: str = "") -> Prompt:
    """Every step takes another piece of the video `drive.mkv` of the input folder."""
    settings = {"force_rate": 0, "custom_width": 0, "custom_height": 0, "frame_load_cap": 2, "select_every_nth": 1}
    return own_body(texts, seed, name) | {
        "frames": node("VHS_LoadVideo", video="drive.mkv", skip_first_frames=["start", 14], **settings),
        "label": label(["noise", 0]),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["label", 0]),
    }


def rgthree_switch(texts: list[str], seed: int, name: str = "") -> Prompt:
    """The next key image, or, at the last step, the initial picture; a seed that knows its id; two displays."""
    prompt = own_body(texts, seed, name) | {
        "own_seed": node("Seed (rgthree)", seed=["start", 10]),
        "frames": node("Any Switch (rgthree)", any_01=["start", 6], any_02=["start", 7]),
        "label": label(["noise", 0]),
        "compare": node("Image Comparer (rgthree)", image_a=["label", 0], image_b=["start", 6]),
        "display": node("Display Any (rgthree)", source=["start", 1]),
        "many": node("RepeatImageBatch", image=["picture", 0], amount=len(texts)),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["label", 0]),
    }
    prompt["start"]["inputs"]["key_images"] = ["many", 0]
    prompt["noise"]["inputs"]["seed"] = ["own_seed", 0]
    return prompt


BODIES = {
    kj_pictures: ("label", "resize", "frames", "noise"),
    vhs_file: ("label", "frames", "noise", "combine"),
    vhs_beside: ("label", "frames", "noise", "combine", "prune"),
    vhs_driven: ("frames", "noise", "label"),
    rgthree_switch: ("own_seed", "frames", "noise", "label", "compare", "display"),
}
"""The nodes of each body that run once per step."""
