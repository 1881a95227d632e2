"""What a body made of a step, in any of the host's types, becomes files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import Input, InputImpl

from ..ksgen_core.errors import KSGenError
from ..ksgen_core.loop.settings import KEY_IMAGES

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.loop.run import Loop

PICTURES_ONLY = {".webp", ".png"}
"""What 'Video Combine' saves that no decoder reads as a video: an animated WebP, numbered pictures."""


def write(folder: Path, values: list[Any], loop: Loop, number: int) -> dict[str, Any]:
    """Write what the body made of a step; the facts about it."""
    from ..ksgen_core.loop import results

    value = values[0] if len(values) == 1 else _joined(values, number)
    if loop.settings.makes == KEY_IMAGES:
        if not _is_frames(value) or len(value) != 1:
            got = f"{len(value)} pictures" if _is_frames(value) else type(value).__name__
            raise KSGenError(f"Step {number + 1}: a key image is one picture, but the loop's result is {got}.")
        return results.write_picture(folder, _in_colour(value)[0])
    if _is_frames(value):
        return results.write_frames(folder, _in_colour(value), loop.settings.fps)
    if isinstance(value, Input.Video):
        return _write_video(folder, value)
    if isinstance(value, tuple | list) and len(value) == 2 and value[1]:  # VHS_FILENAMES: saved at all?, files
        file = Path(value[1][-1])
        if file.suffix.lower() in PICTURES_ONLY:
            raise KSGenError(
                f"Step {number + 1}: 'Video Combine' saved {file.name}, which is no video file. Choose one of its "
                "video formats, e.g. video/h264-mp4, or connect the frames themselves to 'Step Loop End'."
            )
        return results.take_file(folder, file)
    if isinstance(value, tuple | list) and len(value) == 2 and value[1] == []:
        raise KSGenError(
            f"Step {number + 1}: 'Video Combine' saved no file. It got no frames, or a Meta Batch Manager, which "
            "queues the workflow again and again and cannot work in a loop: take it out."
        )
    raise KSGenError(
        f"Step {number + 1}: the loop's result is {_what(value)}, wanted are frames, a video or the file names of "
        "'Video Combine'."
    )


def _write_video(folder: Path, video: Any) -> dict[str, Any]:
    """A video that is a whole file is taken over as it is; another one is encoded by the host."""
    from ..ksgen_core.loop import results

    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    # Before 0.24 the host trimmed no videos.
    trimmed = getattr(video, "get_active_trim_window", lambda: (0, 0))
    if isinstance(source, str) and not any(trimmed()):
        return results.take_file(folder, Path(source))
    if not isinstance(video, InputImpl.VideoFromFile):
        parts = video.get_components()
        sound = (parts.audio["waveform"][0], int(parts.audio["sample_rate"])) if parts.audio else None
        return results.write_frames(folder, _in_colour(parts.images), float(parts.frame_rate), sound)
    path = folder / "saved.mp4"
    video.save_to(str(path))
    facts = results.take_file(folder, path)
    path.unlink()
    return facts


def _is_frames(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 4 and len(value) > 0 and value.shape[-1] in (1, 3, 4)


def _what(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def _in_colour(frames: torch.Tensor) -> torch.Tensor:
    """Frames `[F, H, W, 1, 3 or 4]` as `[F, H, W, 3]`: grey repeated, transparency left out, as a video has none."""
    return frames.expand(*frames.shape[:-1], 3) if frames.shape[-1] == 1 else frames[..., :3]


def _joined(values: list[Any], number: int) -> torch.Tensor:
    """The pictures of a list as one batch."""
    import torch

    if not values or not all(map(_is_frames, values)) or len({value.shape[1:] for value in values}) > 1:
        raise KSGenError(
            f"Step {number + 1}: the loop's result is a list of {len(values)} that cannot be joined. "
            "Give one video, or pictures of one size."
        )
    return torch.cat(values)
