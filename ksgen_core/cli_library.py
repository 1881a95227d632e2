"""`ksgen library`: import, list, check and search skill libraries."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from .errors import KSGenError
from .retrieval.check import faults
from .retrieval.embed import Embedding, installed_embedding
from .retrieval.importers import IMPORTERS
from .retrieval.index import VectorIndex, cache_folder
from .retrieval.library import BUILT_IN, library_files, read_library, write_library
from .retrieval.search import SkillSearch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen library", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    given = {
        "nargs": "*",
        "type": Path,
        "default": [BUILT_IN],
        "help": "files or folders (default: the built-in library)",
    }

    take = commands.add_parser("import", help="turn somebody's procedure data into a library file")
    take.set_defaults(command=_import)
    take.add_argument("format", choices=IMPORTERS)
    take.add_argument("data", type=Path)
    take.add_argument("more", type=Path, nargs="?", help="coin: state sentences; crosstask: annotations")
    take.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .jsonl file to write")

    show = commands.add_parser("list", help="list the skills")
    show.set_defaults(command=_list)
    show.add_argument("places", **given)

    check = commands.add_parser("check", help="say what breaks the writing rules; exit status 1 if anything does")
    check.set_defaults(command=_check)
    check.add_argument("places", **given)

    search = commands.add_parser("search", help="find skills for a goal")
    search.set_defaults(command=_search)
    search.add_argument("goal")
    search.add_argument("places", **given)
    meaning = search.add_mutually_exclusive_group()
    meaning.add_argument("--words", action="store_true", help="compare words alone, not meaning")
    meaning.add_argument(
        "--embedding", type=Path, metavar="DIR", help="a folder of sentence-transformers (default: the installed one)"
    )
    search.add_argument("--count", type=whole_number, default=5, metavar="N", help="at most N skills (default: 5)")
    arguments = parser.parse_args(argv)
    return arguments.command(arguments)


def _import(arguments: argparse.Namespace) -> int:
    importer = IMPORTERS[arguments.format]
    more = () if arguments.more is None else (arguments.more,)
    if more and arguments.format not in ("coin", "crosstask"):
        raise KSGenError(f"The format {arguments.format} takes one place of data, got a second: {arguments.more}.")
    count = write_library(importer(arguments.data, *more), arguments.out)
    print(f"{count} skills in {arguments.out}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    skills = read_library(*arguments.places)
    domains = Counter(skill.domain or "(none)" for skill in skills)
    for skill in skills:
        print(f"{skill.domain or '-':14} {len(skill.steps)} steps  {skill.goal}")
    print(f"{len(skills)} skills in {len(domains)} domains")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    wrong = 0
    for file in (file for place in arguments.places for file in library_files(place)):
        skills = read_library(file)
        for number, fault in faults(skills):
            print(f"{file}: skill {number + 1} ({skills[number].goal}): {fault}", file=sys.stderr)
            wrong += 1
    print(f"{wrong} faults")
    return 1 if wrong else 0


def _search(arguments: argparse.Namespace) -> int:
    folder = None if arguments.words else arguments.embedding or installed_embedding()
    vectors = VectorIndex(Embedding(folder), cache_folder()) if folder else None
    search = SkillSearch(read_library(*arguments.places), vectors, arguments.count)
    for example in search.find(arguments.goal):
        print(f"{example.score:6.2f}  {example.plan.goal}  ({example.source})")
        for number, step in enumerate(example.plan.steps, 1):
            print(f"          {number}. {step.text}")
    missing = "" if folder or arguments.words else "; no sentence embedding is installed"
    print(f"found by {search.by}{missing}")
    return 0


def whole_number(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is wanted, got {text!r}")
    return int(text)
