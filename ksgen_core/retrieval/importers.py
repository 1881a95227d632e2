"""Skills out of other people's procedure data. Each importer yields skills that say their source and licence.

Nothing of these data sets ships with the pack: whoever has one turns it into a library of their own.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import KSGenError
from .library import Skill, SkillStep

States = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""{task: {step: {"description", "before", "after"}}}: state descriptors as GenHowTo/SCHEMA-style files give them."""


def import_coin(path: Path, states: Path | None = None) -> Iterator[Skill]:
    """COIN (Tang et al., CVPR 2019): one skill a video, its steps in the order of time.

    Both shapes are read: `{"database": {VID: ...}}` and `[{VID: ...}, ...]`. `states` is a JSON file of state sentences
    `{task: {step: {description, before[3], after[3]}}}`, joined by task and step; a step without them has none.
    """
    described = _by_key(_json(states)) if states else {}
    for video, item in _coin_videos(_json(path), path):
        try:
            task, segments = item["class"], sorted(item["annotation"], key=lambda s: float(s["segment"][0]))
            labels = [str(s["label"]) for s in segments]
            spans = [float(s["segment"][1]) - float(s["segment"][0]) for s in segments]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise KSGenError(f"Video {video} of {path} is not as COIN has them: {error!r}.") from error
        if not labels:
            continue
        of_task = described.get(_key(task), {})
        steps = (_with_states(label, span, of_task.get(_key(label))) for label, span in zip(labels, spans, strict=True))
        yield Skill(_words(task), tuple(steps), source=f"coin:{video}", licence="CC BY-NC 4.0")


def _coin_videos(data: Any, path: Path) -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and isinstance(data.get("database"), dict):
        yield from data["database"].items()
    elif isinstance(data, list) and all(isinstance(entry, dict) for entry in data):
        for entry in data:
            yield from entry.items()
    else:
        raise KSGenError(f'{path} is not COIN: wanted {{"database": {{VIDEO: ...}}}} or a list of {{VIDEO: ...}}.')


def _with_states(label: str, seconds: float, states: Mapping[str, Any] | None) -> SkillStep:
    before, after = (" ".join((states or {}).get(side) or ()) or None for side in ("before", "after"))
    return SkillStep(label, before, after, _length(seconds))


def _by_key(states: States) -> dict[str, dict[str, Mapping[str, Any]]]:
    return {_key(task): {_key(step): found for step, found in steps.items()} for task, steps in states.items()}


def _key(text: str) -> str:
    """What CamelCase, spaces and capitals leave the same."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _words(camel: str) -> str:
    """ "MakeCoffee" -> "make coffee"; what has spaces keeps its words."""
    spaced = camel if " " in camel else re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", camel)
    return spaced.lower()


def import_crosstask(tasks: Path, annotations: Path | None = None) -> Iterator[Skill]:
    """CrossTask (Zhukov et al., CVPR 2019): one skill a task, or with annotations one a video.

    `tasks` is tasks_primary.txt or tasks_related.txt; `annotations` the folder, or its .tar.gz, of
    `<task>_<video>.csv` files (step from 1, start, end). Steps repeat, overlap and come out of order: they are sorted
    by their start, and one that follows itself counts once.
    """
    known: dict[str, tuple[str, list[str]]] = {}
    for number, block in enumerate(re.split(r"\n\s*\n", _text(tasks).strip()), 1):
        lines = [line.strip() for line in block.splitlines()]
        if len(lines) != 5:
            raise KSGenError(
                f"Block {number} of {tasks} has {len(lines)} lines, wanted 5: id, title, url, count, steps."
            )
        known[lines[0]] = lines[1].lower(), [step.strip() for step in lines[4].split(",")]
    if annotations is None:
        for task, (title, steps) in known.items():
            yield Skill(title, tuple(map(SkillStep, steps)), source=f"crosstask:{task}")
        return
    for name, text in _annotation_files(annotations):
        task, _, video = name.partition("_")
        if task not in known:
            continue
        title, steps = known[task]
        try:
            rows = sorted((float(start), int(step)) for step, start, _ in csv.reader(io.StringIO(text)))
            order = [steps[step - 1] for _, step in rows]
        except (ValueError, IndexError) as error:
            raise KSGenError(f"{name}.csv of {annotations} is not as CrossTask has them: {error}.") from error
        order = [step for k, step in enumerate(order) if not k or step != order[k - 1]]
        if order:
            yield Skill(title, tuple(map(SkillStep, order)), source=f"crosstask:{video}")


def _annotation_files(place: Path) -> Iterator[tuple[str, str]]:
    """Stem and text of every .csv file of a folder or of a tar archive."""
    if place.is_dir():
        for path in sorted(place.glob("*.csv")):
            yield path.stem, _text(path)
        return
    try:
        with tarfile.open(place) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                if member.isfile() and member.name.endswith(".csv") and (file := archive.extractfile(member)):
                    yield Path(member.name).stem, file.read().decode("utf-8")
    except (OSError, tarfile.TarError) as error:
        raise KSGenError(f"{place} is neither a folder nor a tar archive of annotations: {error}.") from error


def import_htstep(path: Path) -> Iterator[Skill]:
    """The taxonomy of HT-Step (Afouras et al., NeurIPS 2023): one skill a variation of an activity.

    Rows whose variation is "none" belong to every variation; headlines are the steps.
    """
    by_activity: dict[str, list[Mapping[str, str]]] = {}
    for row in _rows(path, ("activity", "step_index", "variation", "headline")):
        by_activity.setdefault(row["activity"], []).append(row)
    for activity, rows in by_activity.items():
        rows.sort(key=lambda row: int(row["step_index"]))
        variations = sorted({row["variation"] for row in rows} - {"none"}) or ["none"]
        for variation in variations:
            steps = [_step_text(r["headline"]) for r in rows if r["variation"] in ("none", variation)]
            source = f"htstep:{activity}" + ("" if variation == "none" else f"/{variation}")
            yield Skill(
                activity.lower(), tuple(map(SkillStep, filter(None, steps))), source=source, licence="CC BY-NC 4.0"
            )


def import_egoexo(path: Path) -> Iterator[Skill]:
    """Key steps of Ego-Exo4D (Grauman et al., CVPR 2024): keystep_train.json and its like, one skill a take.

    A segment that is not essential becomes an optional step.
    """
    data = _json(path)
    takes = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(takes, dict):
        raise KSGenError(f'{path} is not a key-step file of Ego-Exo4D: wanted {{"annotations": {{TAKE: ...}}}}.')
    for take, item in takes.items():
        try:
            segments = sorted(item["segments"], key=lambda s: s["start_time"])
            goal = str(item["scenario"])
            steps = [
                SkillStep(
                    _step_text(s.get("step_description") or s["step_name"]),
                    seconds=_length(s["end_time"] - s["start_time"]),
                    optional=not s.get("is_essential", True),
                )
                for s in segments
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise KSGenError(f"Take {take} of {path} is not as Ego-Exo4D has them: {error!r}.") from error
        if steps:
            yield Skill(goal.lower(), tuple(steps), source=f"egoexo4d:{take}")


def _length(seconds: float) -> float | None:
    """The length of a segment, if a step may last so long."""
    return float(seconds) if 0 < seconds <= 600 else None


def import_wikihow(path: Path) -> Iterator[Skill]:
    """wikiHow goals with steps (Zhou et al.'s ordering annotations): a CSV file `goal,steps,ordered?`.

    Only those whose order matters, as people judged it; where that column is missing, all.
    """
    for row in _rows(path, ("goal", "steps")):
        if row.get("ordered?", "1").strip() not in ("1", "1.0", "true", "True"):
            continue
        steps = [_step_text(text) for text in re.split(r"(?<=[.!?])\s+", row["steps"].strip())]
        goal = row["goal"].strip().removeprefix("How to ").lower()
        if steps := [step for step in steps if step]:
            yield Skill(goal, tuple(map(SkillStep, steps)), source=f"wikihow:{goal}", licence="CC BY-NC-SA 3.0")


def import_lists(path: Path) -> Iterator[Skill]:
    """Numbered lists in Markdown or plain text: a heading or a line before the numbers is the goal."""
    goal, steps = "", []
    for number, line in enumerate([*_text(path).splitlines(), "end"], 1):
        if item := re.match(r"\s*\d+[.)]\s+(.*\S)", line):
            if not goal:
                raise KSGenError(
                    f"Line {number} of {path}: a list of steps has no goal. Write one on a line before it."
                )
            steps.append(SkillStep(_step_text(_plain(item[1]))))
        elif line.strip():
            if steps:
                yield Skill(goal, tuple(steps), source=path.name)
            goal, steps = _plain(line).lstrip("#").strip(" :"), []


def _plain(markdown: str) -> str:
    """A line without Markdown's marks of emphasis and code."""
    return re.sub(r"[*`]|(?<!\w)_+|_+(?!\w)", "", markdown.strip())


def _step_text(text: str) -> str:
    return " ".join(text.split()).strip(" .;*_")


def _rows(path: Path, wanted: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    if missing := [name for name in wanted if name not in (reader.fieldnames or ())]:
        raise KSGenError(f"{path} lacks the column(s) {', '.join(missing)}; it has {reader.fieldnames}.")
    yield from reader


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise KSGenError(f"{path} cannot be read: {error}.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise KSGenError(f"{path} is not JSON: {error}.") from error


IMPORTERS: dict[str, Callable[..., Iterator[Skill]]] = {
    "coin": import_coin,
    "crosstask": import_crosstask,
    "htstep": import_htstep,
    "egoexo4d": import_egoexo,
    "wikihow": import_wikihow,
    "lists": import_lists,
}
"""Every format, by the name that `ksgen library import` takes."""
