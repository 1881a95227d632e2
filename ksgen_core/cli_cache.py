"""`ksgen cache`: list, clear and verify the results that step loops left on disk."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from .cache import Result, ResultCache, default_root
from .errors import KSGenError

DAY = 24 * 3600


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen cache", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    show = commands.add_parser("list", help="list the results, the oldest first; * marks those of locked steps")
    show.set_defaults(command=_list)
    show.add_argument("--json", action="store_true", help="all that is known of them, as a JSON list")
    _add_choice(show)

    clear = commands.add_parser("clear", help="remove results, all or those that fit every option given")
    clear.set_defaults(command=_clear)
    _add_choice(clear)
    clear.add_argument("--locked", action="store_true", help="also those of locked steps")

    verify = commands.add_parser("verify", help="read all results; exit status 1 if a damaged one lies there")
    verify.set_defaults(command=_verify)
    verify.add_argument("--remove", action="store_true", help="remove the damaged ones, so that they are made again")

    for command in (show, clear, verify):
        command.add_argument(
            "--folder", type=Path, metavar="DIR", help="where results lie (default: KSGEN_CACHE, or ComfyUI's)"
        )
    arguments = parser.parse_args(argv)
    return arguments.command(arguments)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--older-than", type=_days, metavar="DAYS", help="not used for so many days")
    parser.add_argument("--key", action="append", metavar="PREFIX", help="whose key begins so; may be given repeatedly")
    parser.add_argument("--goal", metavar="TEXT", help="whose goal contains this")


def _list(arguments: argparse.Namespace) -> int:
    cache = _cache(arguments)
    results, locked = _chosen(cache, arguments), cache.locked_keys()
    if arguments.json:
        print(json.dumps([_document(result, result.key in locked) for result in results], indent=2))
        return 0
    rows = [("key", "made", "size", "loop", "step", "", "text")]
    for result in results:
        about = result.about
        mark = "*" if result.key in locked else ""
        text = _short(about.get("text", ""), 60)
        made = result.made[:16].replace("T", " ")
        loop = _short(about.get("loop", ""), 20)
        rows.append((result.key[:12], made, _size(result.bytes), loop, str(about.get("step", "")), mark, text))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if results else ():
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{_many(results)} in {cache.root}")
    return 0


def _clear(arguments: argparse.Namespace) -> int:
    cache = _cache(arguments)
    everything = arguments.older_than is None and arguments.key is None and arguments.goal is None
    chosen = _chosen(cache, arguments)
    spared = set() if arguments.locked else cache.locked_keys() & {result.key for result in chosen}
    # What cannot be listed, as its entry is damaged, goes with everything.
    freed = cache.clear(None if everything else [result.key for result in chosen], arguments.locked)
    left = {result.key for result in cache.entries()}
    gone = sum(result.key not in left for result in chosen)
    print(f"removed {_count(gone)}, {_size(freed)} freed")
    if spared:
        print(f"kept {_count(len(spared))} of locked steps; --locked removes them too")
    if busy := len(chosen) - gone - len(spared):
        print(f"kept {_count(busy)} that cannot be removed now; stop the program that uses them", file=sys.stderr)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    cache = _cache(arguments)
    known = {result.key: result.about for result in cache.entries()}
    wrong = cache.verify()
    for key, what in wrong:
        about = known.get(key, {})
        of = f" ({about.get('loop', '')} step {about.get('step', '?')}: {about.get('text', '')})" if about else ""
        print(f"{key[:12]}{of}: {what}", file=sys.stderr)
        if arguments.remove:
            cache.find(key)  # removes it if it is still damaged
    left = cache.verify(key for key, _ in wrong) if arguments.remove else wrong
    done = f", {len(wrong) - len(left)} removed" if arguments.remove else ""
    print(f"{len(wrong)} damaged{done}")
    return 1 if left else 0


def _cache(arguments: argparse.Namespace) -> ResultCache:
    folder = arguments.folder or default_root()
    if folder is None:
        raise KSGenError("Where the results lie is not known. Give the folder with --folder, or set KSGEN_CACHE.")
    if arguments.folder and not folder.is_dir():
        raise KSGenError(f"--folder {folder} is no folder. Give the one in which the results lie.")
    return ResultCache(folder)


def _chosen(cache: ResultCache, arguments: argparse.Namespace) -> list[Result]:
    """The results that fit the options. Raises `KSGenError` for a key that none has."""
    results = cache.entries()
    for prefix in arguments.key or ():
        if not any(result.key.startswith(prefix.lower()) for result in results):
            raise KSGenError(
                f"No result in {cache.root} has a key that begins with {prefix!r}. See `ksgen cache list`."
            )
    if arguments.key is not None:
        results = [result for result in results if result.key.startswith(tuple(map(str.lower, arguments.key)))]
    if arguments.goal is not None:
        goal = arguments.goal.casefold()
        results = [result for result in results if goal in str(result.about.get("goal", "")).casefold()]
    if arguments.older_than is not None:
        then = time.time() - arguments.older_than * DAY
        results = [result for result in results if result.used < then]
    return results


def _document(result: Result, locked: bool) -> dict[str, object]:
    used = datetime.fromtimestamp(result.used, timezone.utc).isoformat(timespec="seconds")
    return {
        "key": result.key,
        "made": result.made,
        "used": used,
        "bytes": result.bytes,
        "locked": locked,
        "about": result.about,
        "facts": result.facts,
        "folder": str(result.folder),
    }


def _days(text: str) -> float:
    """A number from 0, for argparse."""
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < math.inf:
        raise argparse.ArgumentTypeError(f"a number of days from 0 is wanted, got {text!r}")
    return days


def _short(text: object, length: int) -> str:
    """On one line, without what would steer the terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(str(text).split()))
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _size(count: int) -> str:
    """12.3 MB, in units of 1000 as disks are sold."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _count(number: int) -> str:
    return f"{number} result{'' if number == 1 else 's'}"


def _many(results: Iterable[Result]) -> str:
    sizes = [result.bytes for result in results]
    return f"{_count(len(sizes))}, {_size(sum(sizes))}"
