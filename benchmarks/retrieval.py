"""`ksgen bench retrieval`: does a goal in other words find its skill, and what does a query cost in a large library?

The queries are paraphrases of the built-in skills' goals, one each, written from a list of those goals in another
language, without sight of the wording that they should find. Ranks are those of the scores, before any skill is refused
as too far off; refusals are counted beside them.

The large library is the built-in one over and over, its telling words exchanged for others of the same vocabulary, one
for one. Its vectors are random directions of MiniLM's width: what a query costs does not depend on what they mean.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
from report import REPORTS, markdown, write_report  # noqa: E402

from ksgen_core.errors import KSGenError  # noqa: E402
from ksgen_core.retrieval.embed import Embedding, installed_embedding  # noqa: E402
from ksgen_core.retrieval.index import VectorIndex  # noqa: E402
from ksgen_core.retrieval.lexical import STOP_WORDS  # noqa: E402
from ksgen_core.retrieval.library import BUILT_IN, Skill, read_library  # noqa: E402
from ksgen_core.retrieval.search import LEAST_BY_BOTH, LEAST_BY_WORDS, WORDS_WEIGHT, SkillSearch  # noqa: E402

QUERIES = Path(__file__).resolve().parent / "queries.tsv"
WIDTH = 384


class RandomDirections:
    """Stands in for an embedding: each text has a direction of its own."""

    id, width = "random", WIDTH

    def __call__(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        seeds = (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts)
        vectors = np.stack([np.random.default_rng(seed).standard_normal(WIDTH, np.float32) for seed in seeds])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read_queries(path: Path) -> list[tuple[str, str]]:
    """(query, goal of the skill that is meant) of every line."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(query, goal) for query, goal in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def quality(scores: np.ndarray, truth: np.ndarray, least: float | None = None) -> dict[str, float]:
    """scores [queries, skills], truth [queries] -> shares of queries whose skill is first, among five; mean 1 / rank.

    Skills of the same score rank by their place in the library. `least`: what a score must reach to fit.
    """
    rows = np.arange(len(truth))
    own = scores[rows, truth][:, None]
    earlier = np.arange(scores.shape[1]) < truth[:, None]
    rank = 1 + (scores > own).sum(1) + ((scores == own) & earlier).sum(1)
    found = {"r1": (rank == 1).mean(), "r5": (rank <= 5).mean(), "mrr": (1 / rank).mean()}
    if least is not None:
        found["refused"] = (scores.max(1) < least).mean()
    return {name: float(value) for name, value in found.items()}


def compared(skills: Sequence[Skill], queries: Sequence[tuple[str, str]], index: VectorIndex | None) -> dict[str, Any]:
    """The quality by words, by meaning alone, and by both."""
    number = {skill.goal: n for n, skill in enumerate(skills)}
    if unknown := [goal for _, goal in queries if goal not in number]:
        raise KSGenError(f"The library has no skill {unknown[0]!r}, which a query means. Give the library it is for.")
    truth = np.array([number[goal] for _, goal in queries])
    lexical = SkillSearch(skills)
    words = np.stack([lexical.scores(query) for query, _ in queries])
    found = {"lexical": quality(words, truth, LEAST_BY_WORDS)}
    if index is not None:
        fused_search = SkillSearch(skills, index)
        fused = np.stack([fused_search.scores(query) for query, _ in queries])
        # Scores are a weighted mean of both.
        found["dense"] = quality(fused * (1 + WORDS_WEIGHT) - words * WORDS_WEIGHT, truth)
        found["fused"] = quality(fused, truth, LEAST_BY_BOTH)
    return found


def varied(skills: Sequence[Skill], count: int) -> Iterator[Skill]:
    """`count` skills: the given ones, then the same with other words in the place of theirs."""
    texts = (text for s in skills for text in (s.goal, *s.aliases, *(step.text for step in s.steps)))
    vocabulary = sorted({w for text in texts for w in re.findall(r"[a-z]+", text.lower())} - STOP_WORDS)
    place = {word: n for n, word in enumerate(vocabulary)}
    for n in range(count):
        skill, shift = skills[n % len(skills)], 37 * (n // len(skills))

        def other(found: re.Match[str], shift: int = shift) -> str:
            at = place.get(found[0].lower())
            return found[0] if at is None else vocabulary[(at + shift) % len(vocabulary)]

        def told(text: str | None, other=other) -> str | None:
            return text and re.sub(r"[A-Za-z]+", other, text)

        steps = tuple(replace(s, text=told(s.text), before=told(s.before), after=told(s.after)) for s in skill.steps)
        names = tuple(told(alias) or alias for alias in skill.aliases)
        yield replace(skill, goal=told(skill.goal) or "", aliases=names, steps=steps, source=f"varied:{n}")


def cost(skills: Sequence[Skill], count: int, queries: Sequence[tuple[str, str]], fused: bool) -> dict[str, float]:
    """Processor milliseconds a query, and memory in MB; the vector of the query is there already.

    `peak_mb` is the most that building and searching take beside the skills themselves (Linux).
    """
    empty = memory_mb("VmRSS")
    large = list(varied(skills, count))
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = memory_mb("VmRSS")
    begin = time.process_time()
    search = SkillSearch(large, VectorIndex(RandomDirections()) if fused else None)
    built = time.process_time() - begin
    if search.vectors is not None:
        ready = dict(zip((q for q, _ in queries), search.vectors.embed([q for q, _ in queries]), strict=True))
        search.vectors.of_query = ready.__getitem__
    times = []
    for query, _ in queries:
        begin = time.process_time()
        try:
            search.find(query)
        except KSGenError:
            pass
        times.append((time.process_time() - begin) * 1000)
    return {
        "skills": count,
        "ms_median": float(np.median(times)),
        "ms_p95": float(np.percentile(times, 95)),
        "build_s": built,
        "peak_mb": memory_mb("VmHWM") - before,
        "skills_mb": before - empty,
    }


def memory_mb(field: str) -> float:
    """VmRSS: what this process holds now; VmHWM: the most it held."""
    return int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen bench retrieval", description=__doc__)
    parser.add_argument("--library", type=Path, default=BUILT_IN, metavar="PLACE", help="default: the built-in one")
    parser.add_argument("--queries", type=Path, default=QUERIES, metavar="FILE", help="lines of QUERY<TAB>GOAL")
    parser.add_argument("--embedding", type=Path, metavar="DIR", help="default: the one that is installed")
    parser.add_argument("--skills", type=int, default=20_000, metavar="N", help="in the large library")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="where the report goes")
    parser.add_argument("--cost-of", choices=("words", "both"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    skills, queries = read_library(arguments.library), read_queries(arguments.queries)
    if arguments.cost_of:
        print(json.dumps(cost(skills, arguments.skills, queries, arguments.cost_of == "both")))
        return 0

    folder = arguments.embedding or installed_embedding()
    index = VectorIndex(Embedding(folder)) if folder else None
    figures: dict[str, Any] = {"queries": len(queries), "skills": len(skills)}
    figures["all_names"] = compared(skills, queries, index)
    figures["goals_alone"] = compared([replace(skill, aliases=()) for skill in skills], queries, index)
    rows = [
        [names, by, *(found[by].get(key, "-") for key in ("r1", "r5", "mrr", "refused"))]
        for names, found in (("goals and aliases", figures["all_names"]), ("goals alone", figures["goals_alone"]))
        for by in found
    ]
    table = markdown(["names", "by", "R@1", "R@5", "MRR", "refused"], rows)

    if index is not None:
        begin = time.process_time()
        for query, _ in queries[:50]:
            index.of_query(query)
        figures["embedding_ms"] = (time.process_time() - begin) * 1000 / len(queries[:50])
    figures["large"] = {}
    for by in ("words", "both"):
        # A process of its own: what this one holds does not count.
        own = [sys.executable, __file__, "--library", arguments.library, "--queries", arguments.queries]
        run = subprocess.run([*own, "--skills", str(arguments.skills), "--cost-of", by], capture_output=True, text=True)
        if run.returncode:
            raise KSGenError(f"The measurement of a large library failed: {run.stderr[-500:]}")
        figures["large"][by] = json.loads(run.stdout)
    costs = [[by, *figures["large"][by].values()] for by in figures["large"]]
    table += f"\n\n{len(queries)} queries, {len(skills)} skills. Times are of the processor, of all threads.\n\n"
    table += markdown(["by", *next(iter(figures["large"].values()))], costs)
    if index is not None:
        table += f"\n\nTo embed a query: {figures['embedding_ms']:.1f} ms."
    print(table)
    write_report("retrieval", figures, table, "none", arguments.reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
