"""`ksgen export`: a storyboard folder as one file: a page, a moving picture, a new film."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import storyboard
from .errors import KSGenError
from .export.animation import LONGEST_SIDE, write_webp
from .export.page import write_page
from .film.join import FilmSettings, finish, join
from .film.subtitles import write_subtitles

PAGE, WEBP, FILM = "storyboard.html", "skill.webp", "film.mp4"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen export", description=__doc__)
    commands = parser.add_subparsers(metavar="KIND", required=True)

    page = commands.add_parser("page", help="one HTML file with key images and clips inside, to send to anybody")
    page.set_defaults(command=_page, name=PAGE)

    webp = commands.add_parser("webp", help="all clips as one animated WebP picture")
    webp.set_defaults(command=_webp, name=WEBP)
    webp.add_argument("--width", type=int, metavar="N", help="pixels; the height follows (default: the first clip's)")
    webp.add_argument("--quality", type=int, default=80, metavar="N", help="0, the smallest file, to 100 (default: 80)")

    film = commands.add_parser("film", help="all clips as a new film in MP4, with chapters and subtitles")
    film.set_defaults(command=_film, name=FILM)
    film.add_argument("--cross-fade", type=float, default=0.0, metavar="SECONDS", help="between clips (default: 0)")
    film.add_argument("--titles", action="store_true", help="draw each step's text over the start of its clip")
    film.add_argument(
        "--overlap", type=int, default=0, metavar="N", help="leave out the first N frames of each clip but the first"
    )
    film.add_argument(
        "--no-subtitles", action="store_true", help="no subtitles, in the film or as SRT and WebVTT files"
    )

    for command in (page, webp, film):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="a storyboard folder, as `ksgen run` makes it")
        default = f"default: {command.get_default('name')} in the folder"
        command.add_argument("--out", type=Path, metavar="FILE", help=f"the file to write ({default})")
        command.add_argument("--force", action="store_true", help="replace a file that is there already")
    arguments = parser.parse_args(argv)
    return arguments.command(arguments)


def _page(arguments: argparse.Namespace) -> int:
    (path,) = _free(arguments)
    board = storyboard.load(arguments.folder)
    with _progress("step") as show:
        write_page(path, board.plan, board.key_images, board.clips, progress=show)
    print(path)
    return 0


def _webp(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.quality <= 100:
        raise KSGenError(f"--quality is a whole number from 0 to 100, got {arguments.quality}.")
    if arguments.width is not None and not 1 <= arguments.width <= LONGEST_SIDE:
        raise KSGenError(f"--width is a number of pixels from 1 to {LONGEST_SIDE}, got {arguments.width}.")
    (path,) = _free(arguments)
    clips = storyboard.load(arguments.folder).clips
    with _progress("clip") as show:
        write_webp(path, clips, width=arguments.width, quality=arguments.quality, progress=show)
    print(path)
    return 0


def _film(arguments: argparse.Namespace) -> int:
    subtitles = not arguments.no_subtitles
    settings = FilmSettings(arguments.cross_fade, arguments.titles, subtitles, arguments.overlap)
    path, *beside = _free(arguments, (".srt", ".vtt") if subtitles else ())
    board = storyboard.load(arguments.folder)
    texts = [step.text for step in board.plan.steps]
    with _progress("frame") as show:
        spans = finish(join(path, board.clips, texts, settings), show)
    if subtitles:
        write_subtitles(path, spans, texts)
    print(path, *beside, sep="\n")
    return 0


def _free(arguments: argparse.Namespace, beside: Sequence[str] = ()) -> list[Path]:
    """The file to write, and those of the endings `beside` it.

    Raises `KSGenError` if it has another ending than its kind, is there and --force is not given, or belongs to what
    the storyboard is made of.
    """
    path = arguments.out or arguments.folder / arguments.name
    ending = Path(arguments.name).suffix
    if path.suffix.lower() != ending:
        raise KSGenError(f"--out {path} must end in {ending}. Give the name of the file, not of a folder.")
    paths = [path, *(path.with_suffix(other) for other in beside)]
    own = (arguments.folder / "clips").resolve()
    for one in paths:
        if one.resolve().parent == own:
            raise KSGenError(f"{one} would lie among the storyboard's own clips. Choose another file with --out.")
        if one.is_dir():
            raise KSGenError(f"{one} is a folder. Choose another file with --out.")
        if one.exists() and not arguments.force:
            raise KSGenError(f"{one} is there already. Choose another file with --out, or replace it with --force.")
    return paths


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by what it is told: how many units are done, of how many."""
    from tqdm import tqdm

    with tqdm(unit=unit) as bar:

        def show(number: int, total: int) -> None:
            bar.total = total
            bar.update(number - bar.n)

        yield show
