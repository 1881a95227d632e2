"""The host's services for the core: its folders and files, progress with previews, cancelling.

torch and the core's stages are imported inside the functions that need them: loading the pack loads neither.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import folder_paths
from comfy_api.latest import io, ui

from ..ksgen_core.errors import KSGenError

if TYPE_CHECKING:
    from ..ksgen_core.film.join import Joined
    from ..ksgen_core.pipeline import Fallback, Update, Writing

Done = TypeVar("Done")
log = logging.getLogger("ksgen")

EMBEDDED = "embedded"
MODEL_FOLDER = "ksgen"
EXAMPLE_PICTURE = "ksgen_example.png"
MINI = Path(__file__).resolve().parent.parent / "ksgen_core" / "mini"


def register_model_folders() -> None:
    """Let the host know `models/ksgen` and list the embedded clip weights in its own loaders.

    `add_model_folder_path` adds to what the user's yaml file set, it replaces nothing.
    """
    own = Path(folder_paths.models_dir) / MODEL_FOLDER
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(own))
    offer_native_weights(own / "native")
    for kind in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(kind, str(own / "native" / kind))


def offer_native_weights(folder: Path) -> None:
    """Write the embedded clip model for the host's own loaders, unless this very one is there.

    So every clone holds these weights once. A folder that cannot be written is not an error: then only the template
    that uses the host's loaders misses its files.
    """
    from ..ksgen_core.clips.wan_native import TRANSFORMER_FILE, VAE_FILE, export_native

    clips, mark = MINI / "clips", folder / "made_from.txt"
    weights = sorted(clips.glob("*/*.safetensors"))
    state = "\n".join(f"{path.parent.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights)
    written = (mark, folder / TRANSFORMER_FILE, folder / VAE_FILE)
    try:
        if not weights or (all(path.is_file() for path in written) and mark.read_text() == state):
            return
        export_native(clips, folder)
        mark.write_text(state)
    except (KSGenError, OSError) as error:
        log.warning("The embedded clip weights were not written for ComfyUI's own loaders: %s", error)


def offer_example_picture() -> None:
    """Put the picture of our templates into the host's input folder, where `LoadImage` looks, unless it is there.

    A folder that cannot be written is not an error: then only the templates miss their picture.
    """
    source, target = MINI / "demo.png", Path(folder_paths.get_input_directory()) / EXAMPLE_PICTURE
    if target.exists() or not source.exists():
        return
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        log.info("The example picture was not copied to %s: %s", target, error)


def find_folder(kind: str, name: str, what: str, it: str = "its folder") -> Path:
    """The folder `name` in one of the host's model folders of this kind.

    Raises `KSGenError` if there is none, which says `what` is missing and where to put `it`.
    """
    roots = folder_paths.get_folder_paths(kind)
    for root in roots:
        if Path(name).name == name and (Path(root) / name).is_dir():
            return Path(root) / name
    raise KSGenError(f"There is no {what} {name!r}. Put {it} into {' or '.join(roots)}.")


def require_packages(*names: str) -> None:
    """Raise `KSGenError` with the remedy if a package of ours is missing in the host's Python."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        requirements = Path(__file__).resolve().parent.parent / "requirements.txt"
        raise KSGenError(
            f"KS-Gen needs the Python package(s) {', '.join(missing)}, which ComfyUI's Python lacks. "
            f"Run ComfyUI's python with: -m pip install -r {requirements}"
        )


def watch(events: Iterator[Update | Writing | Fallback | Done], parts: int = 1) -> Iterator[Done]:
    """Pass on what a stage finishes, while the host shows progress and previews and may cancel after every update or
    token.

    `parts` is how many runs of the sampler `events` holds one after the other. Closing `events` on the way out frees
    what the stage held when the host's interrupt, which nobody here catches, goes through.
    """
    import comfy.utils
    from comfy.model_management import throw_exception_if_processing_interrupted

    from ..ksgen_core.pipeline import Fallback, Update, Writing

    bar: Any = None
    before = last = 0
    stage: Any = events
    with closing(stage):
        for event in stage:
            throw_exception_if_processing_interrupted()
            if isinstance(event, Fallback):
                numbers = ", ".join(str(step + 1) for step in event.steps)
                log.warning("%s, step %s: memory ran out, now %s.", event.stage, numbers, event.text)
                last = 0  # what is begun again counts once
                continue
            if not isinstance(event, Update | Writing):
                yield event
                continue
            if not event.total:  # the planner waits for a server
                continue
            if bar is None:
                bar = comfy.utils.ProgressBar(event.total * parts)
            if last and event.number <= last:
                before += event.total
            last = event.number
            preview = _preview(event) if isinstance(event, Update) else None
            bar.update_absolute(before + event.number, max(event.total * parts, before + event.total), preview)


def progress() -> Callable[[int, int], None]:
    """What shows how far the work of a node is, called with how much is done, of how much; the host may cancel at
    every call.

    One bar for all calls: what is too little or too soon after the last the bar keeps from the browser, frame by frame.
    """
    import comfy.utils
    from comfy.model_management import throw_exception_if_processing_interrupted

    bar: Any = None

    def show(number: int, total: int) -> None:
        nonlocal bar
        throw_exception_if_processing_interrupted()
        bar = bar or comfy.utils.ProgressBar(total)
        bar.update_absolute(number, total)

    return show


def show_progress(number: int, total: int) -> None:
    """Show once how far the work of a node is; the host may cancel it here. For many calls there is `progress`."""
    progress()(number, total)


def finish(events: Generator[Joined, None, Done]) -> Done:
    """Let a film be written to its end and give what that returns; progress is shown, and the host may cancel, after
    every frame.
    """
    from ..ksgen_core.film import join

    return join.finish(events, progress())


def _preview(event: Update) -> tuple[str, Any, int] | None:
    """The host's preview tuple: format, PIL picture, longest side."""
    if event.preview is None:
        return None
    from comfy.cli_args import args

    from ..ksgen_core.pixels import to_pil

    return "JPEG", to_pil(event.preview), args.preview_size


def temp_file(name: str) -> Path:
    """A path in the host's temporary folder that no file has yet."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = Path(name).stem, Path(name).suffix
    number = 1
    while (path := folder / f"{stem}_{number:05}{suffix}").exists():
        number += 1
    return path


def output_folder(prefix: str) -> Path:
    """A folder in the host's output folder that does not exist yet: `<prefix>_00001` and so on."""
    return _free(prefix, "")


def output_file(prefix: str, suffix: str, *beside: str) -> Path:
    """A file in the host's output folder that does not exist yet: `<prefix>_00001<suffix>` and so on.

    `beside` are the suffixes of what is written beside it under the same name, which does not exist yet either.
    """
    return _free(prefix, suffix, *beside)


def _free(prefix: str, *suffixes: str) -> Path:
    """The first path that is free with every one of the suffixes, with the first of them."""
    full, name, counter, _subfolder, _prefix = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    # The host's number is 1 for ever if the prefix ends in a slash.
    while any((Path(full) / f"{name}_{counter:05}{suffix}").exists() for suffix in suffixes):
        counter += 1
    return Path(full) / f"{name}_{counter:05}{suffixes[0]}"


def saved_file(path: Path) -> ui.SavedResult:
    """How the front end finds a file in the output folder, to show it on the node that wrote it."""
    subfolder = path.parent.relative_to(folder_paths.get_output_directory())
    return ui.SavedResult(path.name, str(subfolder), io.FolderType.output)


def plan_files() -> list[str]:
    """The JSON files in the host's input folder."""
    return sorted(path.name for path in Path(folder_paths.get_input_directory()).glob("*.json"))


def input_file(name: str) -> Path:
    """The file `name` of the host's input folder. Raises `KSGenError` if there is none."""
    path = Path(folder_paths.get_annotated_filepath(name))
    if not path.is_file():
        raise KSGenError(f"There is no file {name!r} in {folder_paths.get_input_directory()}. Put the plan file there.")
    return path
