"""Data sets of key-step skills: a folder with a manifest, or the same records as WebDataset shards.

A record is one JSON document, `ksgen.record/1`:

    {"kind": "ksgen.record/1", "id": "tea-17", "goal": "make a cup of tea", "split": "train", "steps": [
        {"text": "put the tea bag into the mug", "image": "tea-17.0.png", "clip": "tea-17.0.mp4",
         "before": "the mug is empty", "after": "the tea bag is in the mug"}, ...]}

Step k's image is its key image, the picture it starts from; step 0's is the initial picture. `clip`, `before`, `after`
and `split` ("train" unless it says "validation") may be left out; nothing else may be there.

Folder: `manifest.jsonl`, one document a line; `image` and `clip` are paths inside the folder.
Shards: uncompressed `*.tar` files with the members `ID.json`, `ID.0.png`, `ID.0.mp4`, ...; `image` and `clip` are what
follows `ID.`, e.g. "0.png". Their order in the shard is free.

Opening reads all documents and looks for every file that they name, but opens no picture.
docs/DATASET.md says the same at length.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoints import read_json_lines, write_folder
from ..errors import KSGenError
from .records import Record, RecordStep

MANIFEST = "manifest.jsonl"


def read_records(source: str | Path) -> list[Record]:
    """The records of a folder with a manifest, a folder of shards, a shard, or shards named by braces such as
    `skills-{00000..00031}.tar`.

    Pictures and clips are read when they are asked for. All documents are read, in every process of a training: ten
    thousand take seconds. Raises `KSGenError`, naming file and line or member, if anything is missing, broken, unknown
    or twice there.
    """
    source = Path(source)
    if source.is_dir():
        shards, manifest = sorted(source.glob("*.tar")), source / MANIFEST
        if manifest.is_file() and shards:
            raise KSGenError(f"{source} holds both {MANIFEST} and shards. Keep one of them, or name the shards.")
        if not manifest.is_file() and not shards:
            raise KSGenError(f"{source} holds neither {MANIFEST} nor *.tar. See docs/DATASET.md for the two forms.")
    else:
        shards = [Path(name) for name in expand_braces(str(source))]
        for shard in shards:
            if not shard.is_file():
                raise KSGenError(f"The data set {shard} is not there. Give a folder, a .tar file or a brace pattern.")
    found = itertools.chain.from_iterable(map(_read_shard, shards)) if shards else _read_folder(source)
    records: dict[str, Record] = {}
    for record in found:
        if (twin := records.setdefault(record.id, record)) is not record:
            raise KSGenError(f"{record.where} has the id of {twin.where}. Ids must be unique in a data set.")
    if not records:
        raise KSGenError(f"{source} holds no record. See docs/DATASET.md for what belongs there.")
    return list(records.values())


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; `{a,b}.tar` -> a.tar, b.tar; leading zeros stay."""
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner[1])
    if span:
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = inner[1].split(",")
    before, after = pattern[: inner.start()], pattern[inner.end() :]
    return [name for choice in choices for name in expand_braces(before + choice + after)]


def _read_folder(folder: Path) -> Iterator[Record]:
    manifest = folder / MANIFEST
    broken = "{path}, line {number}, is not a record"

    def parse(document: Any) -> Record:
        record = Record.from_json(document, lambda name: (folder / name).read_bytes())
        stamp = []
        for name in record.files():
            try:
                about = (folder / name).stat() if (folder / name).is_file() else None
            except OSError as error:  # e.g. a name that is too long for a file
                raise KSGenError(
                    f"{folder / name} cannot be there ({error.strerror}). Give the file's name."
                ) from error
            if about is None:
                raise KSGenError(f"{folder / name} is missing. Put it there, or take the record out.")
            stamp.append((about.st_size, about.st_mtime_ns))
        return replace(record, where=f"record {record.id} of {manifest}", stamp=str(stamp))

    yield from read_json_lines(manifest, "The manifest", parse, broken)


def _read_shard(shard: Path) -> Iterator[Record]:
    """The records of a shard in the order of their documents. Only headers and documents are read."""
    documents: dict[str, bytes] = {}
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(shard, "r:", encoding="utf-8") as file:
            for member in file:
                # A record's key ends at the first full stop; folders, as in "./0001.json", say nothing. Hidden files
                # are what macOS adds by itself.
                key, _, ending = PurePosixPath(member.name).name.partition(".")
                if not member.isfile() or not key:
                    continue
                name = f"{key}.{ending}"
                if name in places:
                    raise KSGenError(f"{shard} has the member {name} twice. Keys must be unique in a shard.")
                places[name] = member.offset_data, member.size
                if ending == "json" and (content := file.extractfile(member)):
                    documents[key] = content.read()
        about = shard.stat()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise KSGenError(f"{shard} is not a whole, uncompressed tar file ({error}). Make it again.") from error
    if cut := [name for name, (start, length) in places.items() if start + length > about.st_size]:
        raise KSGenError(f"{shard} is cut off inside {cut[0]}. Get the file again.")
    named: set[str] = set()
    for key, document in documents.items():
        where = f"{key}.json of {shard}"
        try:
            record = Record.from_json(json.loads(document), partial(_member_bytes, shard, places, key), where)
            if record.id != key:
                raise KSGenError(f"its id is {record.id!r}; it must be the member's name up to the first full stop")
            if lost := [name for name in record.files() if f"{key}.{name}" not in places]:
                raise KSGenError(f"the member {key}.{lost[0]} is missing")
        except (KSGenError, ValueError) as error:
            raise KSGenError(f"{where} is not a record: {error}") from error
        named.add(key)
        stamp = [about.st_size, about.st_mtime_ns, *(places[f"{key}.{name}"] for name in record.files())]
        yield replace(record, stamp=str(stamp))
    if orphans := sorted({name.partition(".")[0] for name in places} - named):
        raise KSGenError(f"{shard} has files of {orphans[0]!r} but no {orphans[0]}.json. Every record has a document.")


def _member_bytes(shard: Path, places: Mapping[str, tuple[int, int]], key: str, name: str) -> bytes:
    start, length = places[f"{key}.{name}"]
    with shard.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _with_names(record: Record) -> tuple[Record, dict[str, str]]:
    """The record with the names "0.png", "0.mp4", ... that shards have, and from where each is read."""
    steps, sources = [], {}
    for number, step in enumerate(record.steps):
        image = f"{number}{PurePosixPath(step.image).suffix}"
        clip = None if step.clip is None else f"{number}{PurePosixPath(step.clip).suffix}"
        sources |= {image: step.image, **({} if clip is None or step.clip is None else {clip: step.clip})}
        steps.append(RecordStep(step.text, image, clip, step.before, step.after))
    return replace(record, steps=tuple(steps)), sources


def write_shards(folder: str | Path, records: Iterable[Record], per_shard: int = 1000) -> None:
    """Write a folder of `skills-00000.tar`, ... with `per_shard` records each, whole or not at all.

    The same records give the same bytes. Nothing but one record is held in memory. Raises `KSGenError` if the folder
    holds anything or cannot be written.
    """
    if per_shard < 1:
        raise ValueError(f"a shard holds at least one record, got {per_shard}")
    folder = _empty(Path(folder))

    def write(new: Path) -> None:
        rest = iter(records)
        for number in itertools.count():
            if (first := next(rest, None)) is None:
                return
            with tarfile.open(
                new / f"skills-{number:05d}.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf-8"
            ) as file:
                for record in itertools.chain([first], itertools.islice(rest, per_shard - 1)):
                    named, sources = _with_names(record)
                    _add(file, f"{record.id}.json", json.dumps(named.to_json(), ensure_ascii=False).encode())
                    for name, source in sources.items():
                        _add(file, f"{record.id}.{name}", record.read(source))

    write_folder(folder, write, replace=True)


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # whose time and owner are zero
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def write_manifest(folder: str | Path, records: Iterable[Record]) -> None:
    """Write a folder with a manifest, whole or not at all; its files are named like members of shards.

    Raises `KSGenError` if the folder holds anything or cannot be written.
    """
    folder = _empty(Path(folder))

    def write(new: Path) -> None:
        with (new / MANIFEST).open("w", encoding="utf-8") as manifest:
            for record in records:
                named, sources = _with_names(record)
                document = named.to_json()
                for step in document["steps"]:
                    step |= {kind: f"{record.id}.{step[kind]}" for kind in ("image", "clip") if kind in step}
                for name, source in sources.items():
                    (new / f"{record.id}.{name}").write_bytes(record.read(source))
                manifest.write(json.dumps(document, ensure_ascii=False) + "\n")

    write_folder(folder, write, replace=True)


def _empty(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()) or folder.is_file():
        raise KSGenError(f"{folder} is there already and not empty. Give the name of a new folder.")
    return folder
