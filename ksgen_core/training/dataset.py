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
docs/DATASET.md says the same at length. Legend: H, W a picture's height and width in pixels.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .. import pixels, video
from ..checkpoints import read_json_lines, write_folder
from ..errors import KSGenError
from ..types import Clip, KeyStep, Plan

if TYPE_CHECKING:
    import torch

KIND = "ksgen.record/1"
MANIFEST = "manifest.jsonl"
SPLITS = ("train", "validation")
ID = re.compile(r"[\w-]{1,200}")
"""What an id is made of: WebDataset ends a record's key at the first full stop."""


@dataclass(frozen=True)
class RecordStep:
    """One step: its text, the names of its key image and of its clip, the state of the scene before and after."""

    text: str
    image: str
    clip: str | None = None
    before: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("before", self.before), ("after", self.after)):
            if value is not None and not isinstance(value, str):
                raise KSGenError(f"{name!r} is a sentence, got {value!r}.")
        KeyStep(self.text, self.before, self.after)  # the same rules as in a plan
        for name, value in (("image", self.image), ("clip", self.clip)):
            path = PurePosixPath(value) if isinstance(value, str) and value else None
            if value is None and name == "clip":
                continue
            outside = path is None or "\\" in value or path.is_absolute() or ".." in path.parts or path.parts == ()
            if outside or PureWindowsPath(value).drive:  # as in C:/0.png
                raise KSGenError(f"{name!r} is a path inside the data set, e.g. '0.png', got {value!r}.")


def _no_files(name: str) -> bytes:
    raise ValueError(f"this record was made without its files, wanted {name}")


@dataclass(frozen=True)
class Record:
    """One skill that was carried out.

    `read` gives the bytes of a picture or a clip by its name in `steps`, `where` says where the record stands, and
    `stamp` changes whenever its files do.
    """

    id: str
    goal: str
    steps: tuple[RecordStep, ...]
    split: str = "train"
    read: Callable[[str], bytes] = field(default=_no_files, repr=False, compare=False)
    where: str = field(default="", compare=False)
    stamp: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not ID.fullmatch(self.id):
            raise KSGenError(f"An id is made of at most 200 letters, digits, _ and -, got {self.id!r}.")
        if self.split not in SPLITS:
            raise KSGenError(f"The split is one of {', '.join(SPLITS)}, got {self.split!r}.")
        _ = self.plan

    @property
    def plan(self) -> Plan:
        steps = tuple(KeyStep(step.text, step.before, step.after) for step in self.steps)
        return Plan(self.goal, steps, (f"record:{self.id}",))

    def image(self, step: int) -> torch.Tensor:
        """The key image [H, W, 3] of a step. Raises `KSGenError`, naming the file, if it is no usable picture."""
        from PIL import Image

        name = self.steps[step].image
        try:
            with Image.open(io.BytesIO(self.read(name))) as picture:
                return pixels.one_picture(pixels.from_pil(picture))
        except (KSGenError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise KSGenError(f"The picture {name!r} of {self.where} cannot be used ({error}). Replace it.") from error

    @contextmanager
    def clip(self, step: int) -> Iterator[Clip | None]:
        """The clip of a step, or None without one. Its frames can be read inside the `with` alone.

        Raises `KSGenError`, naming the clip, if it is no video, or for one that the inside of the `with` raises.
        """
        name = self.steps[step].clip
        if name is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="ksgen-") as folder:
            try:
                path = Path(folder) / f"clip{PurePosixPath(name).suffix}"  # in a shard it is no file of its own
                path.write_bytes(self.read(name))
                yield video.open_clip(path)
            except (KSGenError, OSError) as error:
                raise KSGenError(f"The clip {name!r} of {self.where} cannot be used ({error}).") from error

    def to_json(self) -> dict[str, Any]:
        """The document; `from_json` gives an equal record back."""
        names = ("text", "image", "clip", "before", "after")
        steps = [{n: value for n in names if (value := getattr(step, n)) is not None} for step in self.steps]
        return {"kind": KIND, "id": self.id, "goal": self.goal, "split": self.split, "steps": steps}

    @classmethod
    def from_json(cls, document: Any, read: Callable[[str], bytes] = _no_files, where: str = "") -> Record:
        """Raises `KSGenError` for anything but a whole `ksgen.record/1` document."""
        given = _object(document, "A record", ("kind", "id", "goal", "steps"), ("split",))
        if given["kind"] != KIND:
            raise KSGenError(f"A record's kind is {KIND!r}, got {given['kind']!r}.")
        if not isinstance(given["steps"], list) or not given["steps"]:
            raise KSGenError(f"A record's steps are a list of at least one, got {given['steps']!r}.")
        optional = ("clip", "before", "after")
        steps = [_object(s, f"Step {k}", ("text", "image"), optional) for k, s in enumerate(given["steps"])]
        made = tuple(RecordStep(**step) for step in steps)
        return cls(given["id"], given["goal"], made, given.get("split", "train"), read, where)

    def files(self) -> Iterator[str]:
        """The names of all pictures and clips."""
        for step in self.steps:
            yield from (step.image,) if step.clip is None else (step.image, step.clip)


def _object(got: Any, what: str, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(got, dict):
        raise KSGenError(f"{what} is a JSON object, got {type(got).__name__}.")
    missing, unknown = [k for k in needed if k not in got], [k for k in got if k not in (*needed, *optional)]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown entries: {', '.join(unknown)}"
        raise KSGenError(f"{what} {wrong}. It has {', '.join(needed)} and may have {', '.join(optional)}.")
    return got


def read_records(source: str | Path) -> list[Record]:
    """The records of a folder with a manifest, a folder of shards, a shard, or shards named by braces such as
    `skills-{00000..00031}.tar`.

    Pictures and clips are read when they are asked for. All documents are read, in every process of a training: ten
    thousand take seconds. Raises `KSGenError`, naming file and line or member, if
    anything is missing, broken, unknown or twice there.
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
