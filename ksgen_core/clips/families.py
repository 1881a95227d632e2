"""The families of image-to-video models that can be rendered with, and what is known of each. Needs no torch.

`FAMILIES` is a literal table. Its numbers are those of the authors' own repositories, model cards and configs, named
above each entry; where a folder has another opinion, its `ksgen.json` says so (`clip_diffusers.ClipModel.defaults`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import read_json
from ..errors import KSGenError
from .family import Family

# wan/configs/shared_config.py, sample_neg_prompt, in https://github.com/Wan-Video/Wan2.2 (and Wan2.1)
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"  # noqa: RUF001
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"  # noqa: RUF001
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)
PARTS = ("transformer", "vae", "text_encoder", "tokenizer")
SVD_PARTS = ("unet", "vae", "image_encoder", "feature_extractor")
# The examples in diffusers' pipeline_wan_i2v.py read both in float32, with the transformer in bfloat16.
WAN_PRECISE = ("vae", "image_encoder")

# https://huggingface.co/Lightricks/LTX-Video
LTX_NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"
# docs/source/en/api/pipelines/ltx2.md in https://github.com/huggingface/diffusers
LTX2_NEGATIVE = (
    "shaky, glitchy, low quality, worst quality, deformed, distorted, disfigured, motion smear, motion artifacts, "
    "fused fingers, bad anatomy, weird hand, ugly, transition, static."
)
LTX2_CLASSES = ("LTX2ImageToVideoPipeline", "LTX2Pipeline", "LTX2ConditionPipeline")
LTX2_PARTS = ("transformer", "vae", "audio_vae", "vocoder", "text_encoder", "tokenizer", "connectors")
# They would write texts anew and choose lengths: the plan does that.
LTX2_UNUSED = ("processor", "prompt_enhancer", "duration_head", "audio_scheduler", "latent_upsampler")

FAMILIES: tuple[Family, ...] = (
    # https://github.com/Wan-Video/Wan2.1 (generate.py: 40 updates, scale 5, 81 frames at 16 fps),
    # https://huggingface.co/Wan-AI/Wan2.1-I2V-14B-480P-Diffusers; the 720P one differs in what sizes it is good at.
    Family(
        name="Wan 2.1",
        classes=("WanImageToVideoPipeline",),
        pipeline="WanImageToVideoPipeline",
        tells=(
            ("", "expand_timesteps", False),
            ("transformer", "image_dim", True),
            ("transformer", "pos_embed_seq_len", False),
        ),
        parts=(*PARTS, "image_encoder", "image_processor"),
        denoisers=("transformer",),
        updates=40,
        guidance=5.0,
        fps=16.0,
        frames=81,
        every=4,
        least=5,
        most=81,
        area=(480, 832),
        negative=WAN_NEGATIVE,
        precise=WAN_PRECISE,
    ),
    # https://huggingface.co/Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers (scale 5.5; its pos_embed_seq_len is 2 x 257: the
    # tokens of both pictures); https://github.com/Wan-Video/Wan2.1 (generate.py: 50 updates)
    Family(
        name="Wan 2.1 first/last frame",
        classes=("WanImageToVideoPipeline",),
        pipeline="WanImageToVideoPipeline",
        tells=(
            ("", "expand_timesteps", False),
            ("transformer", "image_dim", True),
            ("transformer", "pos_embed_seq_len", True),
        ),
        parts=(*PARTS, "image_encoder", "image_processor"),
        denoisers=("transformer",),
        updates=50,
        guidance=5.5,
        fps=16.0,
        frames=81,
        every=4,
        least=5,
        most=81,
        area=(720, 1280),
        negative=WAN_NEGATIVE,
        precise=WAN_PRECISE,
        last_frame=True,
        needs_last_frame=True,
    ),
    # wan/configs/wan_i2v_A14B.py in https://github.com/Wan-Video/Wan2.2 (sample_steps, boundary, sample_guide_scale),
    # https://huggingface.co/Wan-AI/Wan2.2-I2V-A14B-Diffusers. With one expert and no boundary it is the embedded model.
    Family(
        name="Wan 2.2 14B",
        classes=("WanImageToVideoPipeline",),
        pipeline="WanImageToVideoPipeline",
        tells=(("transformer", "image_dim", False), ("", "expand_timesteps", False)),
        parts=PARTS,
        denoisers=("transformer", "transformer_2"),
        updates=40,
        guidance=3.5,
        guidance_2=3.5,
        fps=16.0,
        frames=81,
        every=4,
        least=5,
        most=81,
        area=(480, 832),
        negative=WAN_NEGATIVE,
        precise=WAN_PRECISE,
        last_frame=True,
    ),
    # wan/configs/wan_ti2v_5B.py in https://github.com/Wan-Video/Wan2.2 (24 fps, 121 frames, 50 updates, scale 5),
    # https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers, whose index names the pipeline for texts alone
    Family(
        name="Wan 2.2 5B",
        classes=("WanImageToVideoPipeline", "WanPipeline"),
        pipeline="WanImageToVideoPipeline",
        tells=(("", "expand_timesteps", True),),
        parts=PARTS,
        denoisers=("transformer",),
        updates=50,
        guidance=5.0,
        fps=24.0,
        frames=121,
        every=4,
        least=5,
        most=121,
        area=(704, 1280),
        negative=WAN_NEGATIVE,
        precise=WAN_PRECISE,
    ),
    # https://huggingface.co/Lightricks/LTX-Video (0.9.0, 0.9.1), whose index names the pipeline for texts alone: frames
    # below 257, this negative text; inference.py in https://github.com/Lightricks/LTX-Video of that time: 40 updates,
    # scale 3, 121 frames at 25 fps, 480 x 704
    Family(
        name="LTX-Video",
        classes=("LTXImageToVideoPipeline", "LTXPipeline"),
        pipeline="LTXImageToVideoPipeline",
        tells=(),
        parts=PARTS,
        denoisers=("transformer",),
        updates=40,
        guidance=3.0,
        fps=25.0,
        frames=121,
        every=8,
        least=9,
        most=257,
        area=(480, 704),
        negative=LTX_NEGATIVE,
    ),
    # https://huggingface.co/Lightricks/LTX-Video-0.9.5 and -0.9.7-dev: 30 fps, 704 x 1216, frames below 257;
    # configs/ltxv-13b-0.9.7-dev.yaml in https://github.com/Lightricks/LTX-Video: 30 updates; scale 5 and the negative
    # text: docs/source/en/api/pipelines/ltx_video.md in https://github.com/huggingface/diffusers. Distilled ones look
    # the same and want 4 to 10 updates at scale 1: their folder's `ksgen.json` must say so.
    Family(
        name="LTX-Video 0.9.5",
        classes=("LTXConditionPipeline",),
        pipeline="LTXConditionPipeline",
        tells=(),
        parts=PARTS,
        denoisers=("transformer",),
        updates=30,
        guidance=5.0,
        fps=30.0,
        frames=121,
        every=8,
        least=9,
        most=257,
        area=(704, 1216),
        negative=LTX_NEGATIVE,
        last_frame=True,
    ),
    # LTX_2_3_PARAMS in packages/ltx-pipelines/src/ltx_pipelines/utils/constants.py,
    # https://github.com/Lightricks/LTX-2 (30 updates, scale 3, 24 fps), https://huggingface.co/diffusers/LTX-2.3-Diffusers
    # (768 x 512, 121 frames); up to 20 seconds. Its transformer also lets the texts be changed by the timestep. The
    # distilled one looks the same and wants 8 updates at scale 1: its folder's `ksgen.json` must say so.
    Family(
        name="LTX-2.3",
        classes=LTX2_CLASSES,
        pipeline="LTX2ImageToVideoPipeline",
        tells=(("transformer", "cross_attn_mod", True),),
        parts=LTX2_PARTS,
        denoisers=("transformer",),
        updates=30,
        guidance=3.0,
        fps=24.0,
        frames=121,
        every=8,
        least=9,
        most=481,
        area=(512, 768),
        negative=LTX2_NEGATIVE,
        last_frame=True,
        unused=LTX2_UNUSED,
    ),
    # https://huggingface.co/Lightricks/LTX-2 (40 updates, scale 4, 121 frames at 24 fps, 768 x 512); up to 20 seconds
    Family(
        name="LTX-2",
        classes=LTX2_CLASSES,
        pipeline="LTX2ImageToVideoPipeline",
        tells=(),
        parts=LTX2_PARTS,
        denoisers=("transformer",),
        updates=40,
        guidance=4.0,
        fps=24.0,
        frames=121,
        every=8,
        least=9,
        most=481,
        area=(512, 768),
        negative=LTX2_NEGATIVE,
        last_frame=True,
        unused=LTX2_UNUSED,
    ),
    # https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5 (50 updates, scale 6, 121 frames at 24 fps, no negative text;
    # up to 10 seconds). Its distilled folders have another scale in their guider, and the size that a folder is made
    # for is its transformer's `target_size`.
    Family(
        name="HunyuanVideo 1.5",
        classes=("HunyuanVideo15ImageToVideoPipeline",),
        pipeline="HunyuanVideo15ImageToVideoPipeline",
        tells=(),
        parts=(
            *("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
            *("image_encoder", "feature_extractor", "guider"),
        ),
        denoisers=("transformer",),
        updates=50,
        guidance=6.0,
        fps=24.0,
        frames=121,
        every=4,
        least=5,
        most=241,
        area=(640, 640),
    ),
    # https://github.com/zai-org/CogVideo (README: 8N + 1 frames up to 49 at 8 fps, 480 x 720 only),
    # https://huggingface.co/zai-org/CogVideoX-5b-I2V (50 updates, scale 6)
    Family(
        name="CogVideoX",
        classes=("CogVideoXImageToVideoPipeline",),
        pipeline="CogVideoXImageToVideoPipeline",
        tells=(("transformer", "patch_size_t", False),),
        parts=PARTS,
        denoisers=("transformer",),
        updates=50,
        guidance=6.0,
        fps=8.0,
        frames=49,
        every=8,
        least=9,
        most=49,
        area=(480, 720),
    ),
    # https://github.com/zai-org/CogVideo (README: 16N + 1 frames up to 161, else 81, at 16 fps, 768 x 1360),
    # https://huggingface.co/zai-org/CogVideoX1.5-5B-I2V (50 updates, scale 6). Two latents make a patch.
    Family(
        name="CogVideoX 1.5",
        classes=("CogVideoXImageToVideoPipeline",),
        pipeline="CogVideoXImageToVideoPipeline",
        tells=(("transformer", "patch_size_t", True),),
        parts=PARTS,
        denoisers=("transformer",),
        updates=50,
        guidance=6.0,
        fps=16.0,
        frames=81,
        every=16,
        least=17,
        most=161,
        area=(768, 1360),
    ),
    # https://huggingface.co/stabilityai/stable-video-diffusion-img2vid (14 frames, 576 x 1024);
    # scripts/sampling/simple_video_sample.py in https://github.com/Stability-AI/generative-models: 25 updates for this
    # one, 30 for the next, scale up to 2.5 and 3.0 (configs/svd.yaml, svd_xt.yaml beside it); 7 fps: the
    # pipeline's own, for the id 6 that the script has
    Family(
        name="SVD",
        classes=("StableVideoDiffusionPipeline",),
        pipeline="StableVideoDiffusionPipeline",
        tells=(("unet", "num_frames", 14),),
        parts=SVD_PARTS,
        denoisers=("unet",),
        updates=25,
        guidance=2.5,
        fps=7.0,
        frames=14,
        every=0,
        least=14,
        most=14,
        area=(576, 1024),
        text=False,
    ),
    # https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt and -xt-1-1
    Family(
        name="SVD XT",
        classes=("StableVideoDiffusionPipeline",),
        pipeline="StableVideoDiffusionPipeline",
        tells=(("unet", "num_frames", 25),),
        parts=SVD_PARTS,
        denoisers=("unet",),
        updates=30,
        guidance=3.0,
        fps=7.0,
        frames=25,
        every=0,
        least=25,
        most=25,
        area=(576, 1024),
        text=False,
    ),
)


def family_of(folder: Path) -> Family:
    """The family of a diffusers folder, by its `model_index.json` and the configs of its parts.

    Raises `KSGenError` if a file that says it is missing or broken, or if none of the known families is it.
    """
    if not folder.is_dir():
        raise KSGenError(
            f"The folder {folder} is missing. It should be a diffusers folder of an image-to-video model: choose a "
            "models folder that has it."
        )
    index = folder / "model_index.json"
    if not index.exists():
        raise KSGenError(f"{index} is missing. The folder must be a diffusers folder, complete.")
    data = read_json(index)

    def config(part: str) -> Mapping[str, Any]:
        path = folder / part / "config.json"
        if not path.exists():
            raise KSGenError(f"{path} is missing. The folder must be a diffusers folder, complete.")
        return read_json(path)

    return find_family(str(data.get("_class_name") or "pipeline without a name"), data, config, str(folder))


def find_family(kind: str, index: Mapping[str, Any], config: Callable[[str], Mapping[str, Any]], where: str) -> Family:
    """The family of a pipeline of class `kind`: `index` is its own config, `config` gives that of a part by name."""
    of_class = [family for family in FAMILIES if kind in family.classes]
    for family in of_class:
        if all(_tells(config(part) if part else index, key, value) for part, key, value in family.tells):
            return family
    known = "; ".join(f"{family.name} ({' or '.join(family.classes)})" for family in FAMILIES)
    what = f"a {kind} of a kind that is not known" if of_class else f"a {kind}, which is not known"
    raise KSGenError(f"{where} holds {what} as an image-to-video model. Choose a folder of one of these: {known}.")


def _tells(config: Mapping[str, Any], key: str, value: object) -> bool:
    got = config.get(key)
    return bool(got) == value if isinstance(value, bool) else got == value


def legal_frames(family: Family, seconds: float, fps: float) -> int:
    """The legal number of frames that is nearest to `seconds` at `fps`; never less than the least.

    Raises `KSGenError`, saying how long a clip can be, if the nearest one would be more than the most.
    """
    wished = seconds * fps
    # Half of the way to the number that would follow the most is still nearest to the most.
    if wished > family.most + max(family.every, 1) / 2:
        raise KSGenError(
            f"A clip of {family.name} has at most {family.most} frames, that is {family.most / fps:.4g} seconds at "
            f"{fps:.4g} frames a second, got {seconds:.4g} seconds. Ask for less, or split the step."
        )
    if not family.every:
        return family.frames
    # Rounded half up, not to even.
    near = math.floor((wished - 1) / family.every + 0.5) * family.every + 1
    return min(max(near, family.least), family.most)


def check_frames(family: Family, frames: int) -> None:
    """Raise `KSGenError`, naming the nearest legal numbers, if a clip of this family cannot have `frames` frames."""
    if not family.every:
        legal = (family.frames,)
    else:
        below = (frames - 1) // family.every * family.every + 1
        legal = tuple(n for n in (below, below + family.every) if family.least <= n <= family.most)
        legal = legal or ((family.least,) if frames < family.least else (family.most,))
    if frames not in legal:
        only = f"The {'nearest is' if len(legal) == 1 else 'nearest are'} {' and '.join(map(str, legal))}."
        raise KSGenError(f"A clip of {family.name} has {family.counts} frames, got {frames}. {only}")
