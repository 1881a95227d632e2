"""The storyboard folder: everything of one run in files that other programs open.

    plan.json          the plan, ksgen.plan/1
    run.json           how the run was made (only for runs of the command line)
    memory.json        what was given up where memory ran out (only if it did)
    key_images/01.png  the picture each step starts from
    clips/01.mp4       the film of each step
    storyboard.png     all steps on one sheet
    skill.mp4          all clips in one film, a chapter per step, with subtitles
    skill.srt          the subtitles; skill.vtt the same for browsers

Every file is written as soon as its content exists, and whole or not at all, so that a run that is stopped at any
moment leaves a folder that can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import pixels
from .checkpoints import write_atomically
from .errors import KSGenError
from .film.join import Joined, join, write_video
from .film.subtitles import write_subtitles
from .pipeline import Event, Fallback, KeyImage, Made, Planned, StepClip
from .sheet import sheet
from .types import Clip, Plan, Storyboard
from .video import open_clip

if TYPE_CHECKING:
    import torch

PLAN, RUN, SHEET, FILM = "plan.json", "run.json", "storyboard.png", "skill.mp4"
MEMORY = "memory.json"
SRT, VTT = "skill.srt", "skill.vtt"
FINISHED = (SHEET, FILM, SRT, VTT)
"""What is written once all steps are there."""


@dataclass(frozen=True)
class StoryboardFolder:
    """A storyboard folder on disk that belongs to `plan` and fills up step by step."""

    path: Path
    plan: Plan

    def key_image_path(self, step: int) -> Path:
        """Where the key image of step `step` (from 0) lies; files count from 1."""
        return self.path / "key_images" / f"{step + 1:02}.png"

    def clip_path(self, step: int) -> Path:
        """Where the clip of step `step` (from 0) lies; files count from 1."""
        return self.path / "clips" / f"{step + 1:02}.mp4"

    def keep_key_image(self, step: int, image: torch.Tensor) -> None:
        """Write the key image `[H, W, 3]` of step `step` (from 0)."""
        _write_picture(self.key_image_path(step), image)

    def keep_clip(self, step: int, clip: Clip) -> Clip:
        """Write the clip of step `step` (from 0) and give it back as the file holds it."""
        write_video(self.clip_path(step), [clip])
        return open_clip(self.clip_path(step))

    def keep_fallback(self, fallback: Fallback) -> None:
        """Add to `memory.json` what was given up because memory ran out."""
        path = self.path / MEMORY
        _write_json(path, [*(_read_json(path) if path.is_file() else []), asdict(fallback)])

    def key_images(self) -> dict[int, torch.Tensor]:
        """The key images that are there, by step (from 0)."""
        steps = range(len(self.plan.steps))
        return {k: pixels.read_picture(p) for k in steps if (p := self.key_image_path(k)).exists()}

    def clips(self) -> dict[int, Clip]:
        """The clips that are there, by step (from 0); one without its key image does not count.

        Raises `KSGenError`, naming the file, if one cannot be read.
        """
        steps = [k for k in range(len(self.plan.steps)) if self.key_image_path(k).exists()]
        try:
            return {k: open_clip(p) for k in steps if (p := self.clip_path(k)).exists()}
        except KSGenError as error:
            raise KSGenError(f"{error} A run of the command line makes it with --resume.") from error

    def made(self) -> Made:
        """What is there, for a run that is resumed."""
        return Made(self.key_images(), self.clips())

    def finish(self) -> Generator[Joined, None, Storyboard]:
        """Write the sheet, the joined film and its subtitles of a complete folder and return what it holds.

        Raises `KSGenError` naming the steps that are not there yet.
        """
        storyboard = self.read()
        texts = [step.text for step in self.plan.steps]
        _write_picture(self.path / SHEET, sheet(storyboard.plan, storyboard.key_images, storyboard.clips))
        shown = yield from join(self.path / FILM, storyboard.clips, texts)
        write_subtitles(self.path / FILM, shown, texts)
        return storyboard

    def read(self) -> Storyboard:
        """The storyboard of a complete folder. Raises `KSGenError` naming the steps that are not there yet."""
        images, clips = self.key_images(), self.clips()
        missing = [k + 1 for k in range(len(self.plan.steps)) if k not in images or k not in clips]
        if missing:
            steps = ", ".join(map(str, missing))
            raise KSGenError(f"{self.path} lacks the key image or the clip of step {steps}. Run again with --resume.")
        return Storyboard(self.plan, tuple(images[k] for k in sorted(images)), tuple(clips[k] for k in sorted(clips)))


def start(folder: str | Path, plan: Plan, settings: Mapping[str, Any] | None = None) -> StoryboardFolder:
    """Begin a new run in `folder`, which is made if need be.

    `settings`, a JSON object, says how the run is made; `resume` compares it. A run that had settings but made
    nothing is replaced. Raises `KSGenError` if the folder holds any other run or cannot be written.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise KSGenError(f"{path} is a file. Choose another output folder.")
    if is_storyboard(path):
        if not _has_only_begun(path):
            raise KSGenError(
                f"{path} holds another run already. Choose another folder, delete this one, or continue it with "
                "--resume."
            )
        clear(path)
    if settings is not None:
        _write_json(path / RUN, dict(settings))
    _write_json(path / PLAN, plan.to_json())
    return StoryboardFolder(path, plan)


def is_storyboard(folder: str | Path) -> bool:
    """Whether something of a run lies in the folder."""
    path = Path(folder)
    return any((path / name).exists() for name in (PLAN, *FINISHED)) or bool(_pictures_and_clips(path))


def _has_only_begun(path: Path) -> bool:
    """Whether a run left its plan and its settings there, but nothing beyond the given picture, key image 1."""
    ended = any((path / name).exists() for name in FINISHED)
    return (path / RUN).is_file() and not ended and set(_pictures_and_clips(path)) <= {path / "key_images" / "01.png"}


def _pictures_and_clips(path: Path) -> list[Path]:
    """The key images and clips that are there, whatever the plan says."""
    return [*path.glob("key_images/[0-9][0-9]*.png"), *path.glob("clips/[0-9][0-9]*.mp4")]


def clear(folder: str | Path) -> None:
    """Remove the files of the run in `folder`, and nothing else that lies there."""
    path = Path(folder)
    # A process that is killed leaves the temporary file that `write_atomically` was filling.
    unfinished = [file for inner in (".", "key_images", "clips") for file in (path / inner).glob(".writing-*")]
    try:
        # The settings go last: as long as they are there, the folder can be cleared again.
        finished = [path / name for name in FINISHED]
        for file in (*_pictures_and_clips(path), *unfinished, *finished, path / MEMORY, path / PLAN, path / RUN):
            file.unlink(missing_ok=True)
        for inner in ("key_images", "clips"):
            if (path / inner).is_dir() and not any((path / inner).iterdir()):
                (path / inner).rmdir()
    except OSError as error:
        raise KSGenError(f"{path} cannot be cleared ({error}). Choose another output folder.") from error


def run_settings(folder: str | Path) -> dict[str, Any] | None:
    """How the run in `folder` was made, or None if the folder does not say."""
    path = Path(folder) / RUN
    if not path.is_file():
        return None
    settings = _read_json(path)
    if not isinstance(settings, dict):
        raise KSGenError(f"{path} must hold a JSON object, got {type(settings).__name__}. Choose another folder.")
    return settings


def resume(
    folder: str | Path, settings: Mapping[str, Any], plan: Plan | None = None, of_clips: Sequence[str] = ()
) -> StoryboardFolder:
    """Go on with the run in `folder`, whose plan is kept.

    `of_clips` are the settings that only clips depend on: as long as there is no clip they may change. Raises
    `KSGenError` if no run lies there, or another one: made with other `settings` or by another `plan`.
    """
    path = Path(folder)
    kept = read_plan(path / PLAN)
    if plan is not None and plan != kept:
        raise KSGenError(f"{path} holds another run: its plan differs from the given one. Choose another folder.")
    before = run_settings(path)
    if before is None:
        raise KSGenError(f"{path} does not say how it was made ({RUN} is missing). Choose another folder.")
    differ = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if differ and set(differ) <= set(of_clips) and not any(path.glob("clips/[0-9][0-9]*.mp4")):
        _write_json(path / RUN, dict(settings))
    elif differ:
        was = "; ".join(f"{key} was {before.get(key)!r}, now {settings.get(key)!r}" for key in differ)
        raise KSGenError(f"{path} holds another run ({was}). Give the same settings or choose another folder.")
    return StoryboardFolder(path, kept)


def keep(
    events: Iterable[Event],
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    resumed: StoryboardFolder | None = None,
) -> Generator[Event, None, None]:
    """Pass on the events of a run and write what they bring the moment they bring it, at last sheet and film.

    A clip is passed on as its file holds it. Without `resumed` a new run begins in `folder` once the plan is known.
    """
    place = resumed
    for event in events:
        if isinstance(event, Planned):
            place = place or start(folder, event.plan, settings)
        elif place is None:
            raise ValueError(f"a run begins with Planned, got {type(event).__name__}")
        elif isinstance(event, KeyImage):
            place.keep_key_image(event.step, event.image)
        elif isinstance(event, StepClip):
            event = replace(event, clip=place.keep_clip(event.step, event.clip))
        elif isinstance(event, Fallback):
            place.keep_fallback(event)
        yield event
    if place is None:
        raise ValueError("a run begins with Planned, got no event at all")
    for _ in place.finish():
        pass


def save(storyboard: Storyboard, folder: str | Path) -> Storyboard:
    """Write a whole storyboard into a new folder and give it back as the files hold it; `load` gives an equal one.

    Raises `KSGenError` if the folder holds a run already or cannot be written.
    """
    for _ in saving(storyboard, folder):
        pass
    return load(folder)


def saving(storyboard: Storyboard, folder: str | Path) -> Generator[Joined, None, None]:
    """`save` bit by bit: every clip that is written counts as much as the film of all of them to which they add up."""
    place, count = start(folder, storyboard.plan), len(storyboard.clips)
    for step, (image, clip) in enumerate(zip(storyboard.key_images, storyboard.clips, strict=True)):
        place.keep_key_image(step, image)
        place.keep_clip(step, clip)
        yield Joined(step + 1, 2 * count)
    for done in place.finish():
        yield Joined(count * (done.total + done.number) // done.total, 2 * count)


def load(folder: str | Path) -> Storyboard:
    """Read a storyboard folder; clips are decoded when their frames are asked for.

    Raises `KSGenError` if the folder is none or lacks a key image or a clip.
    """
    path = Path(folder)
    return StoryboardFolder(path, read_plan(path / PLAN)).read()


def read_plan(path: str | Path) -> Plan:
    """Read a ksgen.plan/1 file. Raises `KSGenError`, naming the file, if it is missing or wrong in any way."""
    try:
        return Plan.from_json(_read_json(Path(path)))
    except KSGenError as error:
        raise error if str(path) in str(error) else KSGenError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KSGenError(f"{path} cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise KSGenError(f"{path} is not valid JSON ({error}).") from error


def _write_json(path: Path, data: Any) -> None:
    _write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def _write_picture(path: Path, picture: torch.Tensor) -> None:
    write_atomically(path, lambda temporary: pixels.to_pil(picture).save(temporary, format="PNG"))
