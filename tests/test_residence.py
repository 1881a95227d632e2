"""Components by need, the memory options and the ladder, on the embedded clip model."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from tiny_clips import FAST, picture
from tiny_clips import render as render_tiny
from torch import nn

from ksgen_core import build, residence_diffusers
from ksgen_core.errors import KSGenError
from ksgen_core.ladder_diffusers import climb, in_halves, out_of_memory, with_ladder
from ksgen_core.memory import MemoryOptions
from ksgen_core.residence_diffusers import OneByOne, room_to_work, settle, size_of, streamed_parts

STREAMS = pytest.mark.skipif(
    not torch.accelerator.is_available() and tuple(map(int, version("diffusers").split(".")[:2])) < (0, 41),
    reason="diffusers before 0.41 streams layers to accelerators alone",
)


def clip_model():
    return build.embedded().clips()


def render(model, steps, images=None):
    return render_tiny(model, steps, images, settings=FAST)


@pytest.fixture(scope="module")
def bare():
    return render(clip_model(), [0])[0]


def settled(**options):
    model = clip_model()
    settle(model, MemoryOptions(**options))
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"offload": "none"}, {"offload": "parts"}, {"offload": "layers"}, {"tiling": True}, {"attention": "native"}],
    ids=str,
)
def test_options_that_cost_nothing_change_nothing(options, bare):
    assert render(settled(**options), [0])[0].equal(bare)


@pytest.mark.parametrize(
    "options", [{"fp8": True}, {"fp8": True, "offload": "layers"}, {"first_block_cache": 0.2}], ids=str
)
def test_options_that_cost_a_little_change_a_little(options, bare):
    changed = render(settled(**options), [0])[0]
    assert not changed.equal(bare)
    assert (changed - bare).abs().mean() < 0.02


def test_fp8_halves_the_backbone_or_better():
    model = clip_model()
    before = size_of(model.pipe.transformer.blocks)
    settle(model, MemoryOptions(fp8=True))
    assert size_of(model.pipe.transformer.blocks) < before / 2


class Noting:
    """A residence that notes who was needed."""

    device = torch.device("cpu")

    def __init__(self):
        self.needed, self.rooms = [], {}

    def need(self, part, streamed, room):
        self.rooms[type(part).__name__] = room
        if not self.needed or self.needed[-1] != (part, streamed):
            self.needed.append((part, streamed))


def test_every_component_is_asked_for_before_it_works(bare):
    model, noting = clip_model(), Noting()
    settle(model, MemoryOptions(), noting)
    assert render(model, [0])[0].equal(bare)
    names = {part: name for name, part in model.parts().items()}
    order = [names[part] for part, _ in noting.needed]
    assert order.index("text_encoder") < order.index("transformer") and order[-1] == "vae"
    assert "text_encoder" not in order[order.index("transformer") :]  # out before the first update, and not called back
    assert not any(streamed for _, streamed in noting.needed)
    # 5 frames of 32 x 32 pixels are 2 x 4 x 4 latents, in patches of 2 x 2: 8 tokens of width 256 in float32.
    assert noting.rooms["WanTransformer3DModel"] == 12 * 8 * 256 * 4


def test_room_to_work_goes_by_the_tokens_whatever_the_layout():
    class Config:
        num_attention_heads, attention_head_dim, patch_size, in_channels = 48, 64, 2, 32

    cogvideox = SimpleNamespace(config=Config)
    latents = torch.zeros(1, 13, 32, 60, 90)  # frames, channels
    assert room_to_work(cogvideox, latents) == 12 * (13 * 30 * 45) * 48 * 64 * 4
    assert room_to_work(cogvideox, torch.zeros(2, 100, 7)) == 12 * 200 * 48 * 64 * 4
    assert room_to_work(nn.Linear(1, 1), latents) == 0


def test_streamed_layers_are_not_moved_by_the_host(bare):
    model, noting = clip_model(), Noting()
    settle(model, MemoryOptions(offload="layers"), noting)
    assert render(model, [0])[0].equal(bare)
    assert {streamed for part, streamed in noting.needed if part is model.pipe.transformer} == {True}


class Moved(nn.Linear):
    """A component that says where it was last sent."""

    where = "cpu"

    def to(self, *args, **kwargs):
        self.where = str(args[0])
        return self  # there is one device on the machines that test this


def test_one_component_at_a_time_is_on_the_device():
    first, second, residence = Moved(1, 1), Moved(1, 1), OneByOne("cuda")
    residence.need(first, False, 0)
    assert (first.where, second.where) == ("cuda", "cpu")
    residence.need(second, False, 0)
    assert (first.where, second.where) == ("cpu", "cuda")
    residence.need(first, True, 0)  # brings its own layers
    assert (first.where, second.where) == ("cpu", "cpu")


def hungry(times: int, then):
    """Work that asks `times` times for more memory than any machine has, by torch's own allocator."""
    left = [times]

    def work():
        if left[0]:
            left[0] -= 1
            torch.empty(2**60)
        yield then()

    return work


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) + torch.zeros(3)
    assert not out_of_memory(caught.value)
    assert not out_of_memory(KSGenError("out of memory"))


def test_the_ladder_is_climbed_until_it_works_and_each_rung_is_told(bare):
    model = settled(offload="none")
    work = hungry(2, lambda: render(model, [0])[0])
    events = list(with_ladder(model, work, tell=lambda rung, _: rung))
    assert events[:2] == ["tiling", "parts"]
    assert events[2].equal(bare)
    assert model.settled.options == MemoryOptions(offload="parts", tiling=True)


def test_a_batch_is_halved_before_the_ladder_is_climbed():
    model, done = settled(offload="none"), []

    def work(batch):
        if len(batch) > 1:
            torch.empty(2**60)
        done.extend(batch)
        yield list(batch)

    told = list(in_halves(model, [1, 2, 3], work, tell=lambda rung, text: (rung, text)))
    assert done == [1, 2, 3]
    assert [event[0] if isinstance(event, tuple) else event for event in told] == ["batch", "batch", [1], [2], [3]]
    assert told[0] == ("batch", "at most 2 are made together") and not model.settled.options.tiling


def test_after_the_last_rung_it_is_an_error_that_says_what_was_tried():
    model = settled(offload="none")
    with pytest.raises(KSGenError, match="tiling, parts, layers, fp8.*smaller"):
        list(with_ladder(model, hungry(99, dict)))
    assert climb(model) is None


def test_other_errors_go_through_untouched():
    model = settled()

    def fail():
        yield 1
        raise ValueError("not memory")

    events = with_ladder(model, fail)
    assert next(events) == 1
    with pytest.raises(ValueError, match="not memory"):
        next(events)
    assert not model.settled.options.tiling


def loads_of_each_group(model) -> list[int]:
    """How many of diffusers' groups bring the same modules to the device in one pass, for each set of modules."""
    groups: dict[tuple[int, ...], set[int]] = {}
    before = ModuleGroup.onload_

    def note(self):
        groups.setdefault(tuple(id(module) for module in self.modules), set()).add(id(self))
        return before(self)

    ModuleGroup.onload_ = note
    try:
        render(model, [0])
    finally:
        ModuleGroup.onload_ = before
    return [len(found) for found in groups.values()]


@STREAMS
def test_options_can_be_raised_and_taken_back_and_leave_nothing_behind(bare):
    model = settled(offload="layers")
    assert set(loads_of_each_group(model)) == {1}
    settle(model, MemoryOptions(offload="layers", fp8=True))
    assert set(loads_of_each_group(model)) == {1}
    assert (render(model, [0])[0] - bare).abs().mean() < 0.02
    settle(model, MemoryOptions(offload="parts", fp8=True))
    assert loads_of_each_group(model) == []
    settle(model, MemoryOptions(offload="none", fp8=True))
    assert not any(hasattr(part, "_hf_hook") for part in model.parts().values())


@STREAMS
def test_a_component_that_alone_has_no_room_comes_layer_by_layer_too(bare, monkeypatch):
    gb = 2**30
    sizes = {"text_encoder": 24 * gb, "transformer": 4 * gb, "vae": gb}
    monkeypatch.setattr(residence_diffusers, "free_memory", lambda _: (23 * gb, 24 * gb))
    assert streamed_parts(sizes, ("transformer",), torch.device("cpu")) == {"text_encoder", "transformer"}
    # Ours has none of that size: a device of a few bytes, on which all are too large.
    monkeypatch.setattr(residence_diffusers, "free_memory", lambda _: (1, 1))
    model = settled(offload="layers")
    assert len(loads_of_each_group(model)) > 20  # also the text encoder's and the VAE's layers
    assert render(model, [0])[0].equal(bare)


def test_components_that_do_not_fit_together_are_named():
    model = clip_model()
    kind = type(model.pipe.vae)
    model.pipe.vae.__class__ = type(kind.__name__, (kind,), {"to": lambda *_: torch.empty(2**60)})
    with pytest.raises(KSGenError, match="do not fit on cpu together.*vae 0.0 GB.*'parts'"):
        settle(model, MemoryOptions(offload="none"))


def test_several_gpus_need_as_many_processes():
    with pytest.raises(KSGenError, match="torchrun --nproc-per-node 2"):
        settled(gpus=2)


def test_an_attention_whose_package_is_missing_is_refused():
    with pytest.raises(KSGenError, match="transformer"):
        settled(attention="flash")


def test_the_attention_of_one_model_is_not_that_of_the_next(bare):
    settled(attention="_native_cudnn")  # which has no kernel for processors: who took it could not render
    assert render(clip_model(), [0])[0].equal(bare)


def test_what_was_given_stays_as_it_was():
    model = clip_model()
    state = {name: tensor.clone() for name, tensor in model.pipe.transformer.state_dict().items()}
    settle(model, MemoryOptions(offload="layers", tiling=True))
    render(model, [0], images=[picture(0)])
    assert all(tensor.equal(state[name]) for name, tensor in model.pipe.transformer.state_dict().items())
