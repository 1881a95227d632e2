"""The named memory options, their ladder, and what `auto` decides: no torch, no device."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksgen_core.errors import KSGenError
from ksgen_core.memory import ATTENTIONS, COSTS, LADDER, OFFLOADS, MemoryOptions
from ksgen_core.residence_diffusers import where_it_fits

OPTIONS = st.builds(
    MemoryOptions, offload=st.sampled_from(OFFLOADS), fp8=st.booleans(), tiling=st.booleans(), gpus=st.integers(1, 8)
)
GB = 2**30


@given(OPTIONS, st.booleans())
def test_the_ladder_ends_and_never_gives_up_what_was_reached(options, has_tiling):
    seen, order = [], [rung for rung, _ in LADDER]
    while (step := options.next_rung(has_tiling)) is not None:
        rung, following = step
        seen.append(rung)
        assert following != options
        assert following.fp8 >= options.fp8 and following.tiling >= options.tiling
        options = following
    assert seen == sorted(seen, key=order.index) and len(set(seen)) == len(seen)
    assert options.offload == "layers" and options.fp8
    assert options.tiling or not has_tiling


@pytest.mark.parametrize(
    "wrong",
    [{"offload": "disk"}, {"attention": "fast"}, {"first_block_cache": 1.0}, {"first_block_cache": -0.1}, {"gpus": 0}],
)
def test_a_wrong_option_is_refused_saying_what_there_is(wrong):
    (value,) = wrong.values()
    with pytest.raises(KSGenError, match=str(value).replace("-", r"\-")):
        MemoryOptions(**wrong)


def test_every_option_says_what_it_costs():
    assert set(COSTS) == set(MemoryOptions().to_json())
    assert all(ATTENTIONS.values())
    assert MemoryOptions(**MemoryOptions(fp8=True).to_json()) == MemoryOptions(fp8=True)


def test_it_is_read_without_torch():
    code = "import ksgen_core.memory, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_auto_takes_the_fastest_way_that_fits():
    parts = {"text_encoder": 11 * GB, "transformer": 10 * GB, "vae": GB}
    assert where_it_fits(parts, free=79 * GB, total=80 * GB) == "none"
    assert where_it_fits(parts, free=23 * GB, total=24 * GB) == "parts"
    assert where_it_fits(parts, free=11 * GB, total=12 * GB) == "layers"
    # What others hold on the device counts.
    assert where_it_fits(parts, free=20 * GB, total=80 * GB) == "layers"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 80), st.integers(1, 80))
def test_auto_never_saves_more_with_more_memory(sizes, one, other):
    parts = {str(number): size * GB for number, size in enumerate(sizes)}
    order = ["layers", "parts", "none"]
    less, more = sorted((one, other))
    ways = [order.index(where_it_fits(parts, free * GB, 80 * GB)) for free in (less, more)]
    assert ways[0] <= ways[1]
