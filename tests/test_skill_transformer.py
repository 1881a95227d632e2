"""The Skill Transformer: what it sees, what it learns, and that a file gives the same one back."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from ksgen_core.checkpoints import save_weights
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.skill_transformer import KIND, SkillTransformer, SkillTransformerConfig, causal_by_image

SIZES = SkillTransformerConfig(
    token_width=12, text_width=10, tokens_per_image=3, max_images=6, width=16, layers=2, heads=2, ff_width=32
)
B, T, L = 2, 4, 5


@pytest.fixture
def model():
    return new_model()


def new_model(trained: bool = True) -> SkillTransformer:
    torch.manual_seed(0)
    model = SkillTransformer(SIZES)
    model.empty_tokens.normal_()
    if trained:  # as training leaves them: the exits say something
        torch.nn.init.normal_(model.to_tokens.weight, std=0.3)
        torch.nn.init.normal_(model.to_tokens.bias, std=0.3)
    return model.eval()


def batch():
    """tokens [B, T, N, C], texts [B, T, L, K], text_mask [B, T, L] with texts of different lengths."""
    torch.manual_seed(1)
    tokens = torch.randn(B, T, SIZES.tokens_per_image, SIZES.token_width)
    texts = torch.randn(B, T, L, SIZES.text_width)
    lengths = torch.tensor([[5, 3, 4, 2], [2, 5, 3, 4]])
    return tokens, texts, torch.arange(L) < lengths[..., None]


def test_untrained_it_foresees_the_tokens_of_the_zero_image():
    model = new_model(trained=False)
    predicted = model(*batch())
    assert predicted.equal(model.empty_tokens.expand_as(predicted))


def test_teacher_forced_and_rolled_out_agree_for_one_step(model):
    tokens, texts, mask = batch()
    rolled = model.roll_out(tokens[:, 0], texts, mask, steps=2)
    assert rolled[:, 0].equal(tokens[:, 0])
    assert rolled[:, 1].equal(model(tokens[:, :1], texts, mask)[:, 0])
    # Read among later images, the first prediction is the same but for float sums of another length.
    torch.testing.assert_close(rolled[:, 1], model(tokens, texts, mask)[:, 0], atol=1e-5, rtol=1e-5)


def test_the_roll_out_is_teacher_forced_prediction_fed_with_itself(model):
    tokens, texts, mask = batch()
    rolled = model.roll_out(tokens[:, 0], texts, mask)
    assert rolled.shape == tokens.shape
    torch.testing.assert_close(rolled[:, 1:], model(rolled[:, :-1], texts, mask), atol=1e-5, rtol=1e-5)
    assert model.roll_out(tokens[:, 0], texts, mask, steps=3).equal(rolled[:, :3])


def test_the_mask_is_block_causal_by_image():
    assert causal_by_image(3, 2).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("changed", range(T))
def test_later_steps_see_earlier_ones_and_never_the_reverse(model, changed):
    tokens, texts, mask = batch()
    other = tokens.clone()
    other[:, changed, -1] += 1  # the last token, so that the image's first ones must look ahead to see it
    difference = (model(other, texts, mask) - model(tokens, texts, mask)).abs().amax((0, 3))
    assert difference[:changed].eq(0).all()
    assert difference[changed:].gt(1e-4).all()


@pytest.mark.parametrize("changed", range(T))
def test_every_step_sees_the_texts_of_all_steps(model, changed):
    tokens, texts, mask = batch()
    other = texts.clone()
    other[:, changed, 0] *= -1
    assert (model(tokens, other, mask) - model(tokens, texts, mask)).abs().amax((0, 3)).gt(1e-5).all()


def test_it_knows_which_text_belongs_to_which_step(model):
    tokens, texts, mask = batch()
    swapped = [1, 0, 2, 3]
    assert not model(tokens, texts[:, swapped], mask[:, swapped]).allclose(model(tokens, texts, mask), atol=1e-4)


def test_padding_is_not_seen(model):
    tokens, texts, mask = batch()
    expected = model(tokens, texts, mask)
    assert model(tokens, texts.masked_fill(~mask[..., None], 1e3), mask).equal(expected)

    # A plan of 2 steps, alone and padded to 4 with steps that are not there.
    is_step = torch.tensor([[True] * 4, [True, True, False, False]])
    padded = tokens.masked_fill(~is_step[..., None, None], 1e3)
    predicted = model(padded, texts.masked_fill(~is_step[..., None, None], 1e3), mask & is_step[..., None])
    alone = model(tokens[1:, :2], texts[1:, :2], mask[1:, :2])
    torch.testing.assert_close(predicted[1:, :2], alone, atol=1e-5, rtol=1e-5)


def test_the_loss_leaves_padding_out(model):
    tokens, texts, mask = batch()
    is_step = torch.tensor([[True] * 4, [True, True, False, False]])
    mask = mask & is_step[..., None]
    loss = model.loss(tokens, texts, mask, is_step, context_weight=0.5)
    padded = tokens.masked_fill(~is_step[..., None, None], 1e3)
    assert model.loss(padded, texts, mask, is_step, context_weight=0.5).equal(loss)

    predicted = model(tokens[:, :-1], texts, mask)
    target, context = tokens[:, 1:], tokens[:, :1].expand(-1, T - 1, -1, -1)
    real = is_step[:, 1:]
    by_hand = (predicted[real] - target[real]).square().mean() + 0.5 * (predicted[real] - context[real]).square().mean()
    torch.testing.assert_close(loss, by_hand)


def test_a_batch_can_be_overfitted():
    model = new_model(trained=False).train()
    tokens, texts, mask = batch()
    is_step = torch.ones(B, T, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    first = None
    for _ in range(150):
        loss = model.loss(tokens, texts, mask, is_step)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 * first


def test_inputs_are_not_written_into(model):
    given = batch()
    before = [tensor.clone() for tensor in given]
    model(*given), model.roll_out(given[0][:, 0], *given[1:])
    assert all(a.equal(b) for a, b in zip(given, before, strict=True))


def test_it_works_in_inference_mode(model):
    tokens, texts, mask = batch()
    with torch.no_grad():
        expected = model.roll_out(tokens[:, 0], texts, mask)
    with torch.inference_mode():
        assert model.roll_out(tokens[:, 0], texts, mask).equal(expected)


def test_a_saved_one_is_loaded_bit_for_bit(model, tmp_path):
    model.save(tmp_path / "s.safetensors")
    loaded = SkillTransformer.load(tmp_path / "s.safetensors")
    assert loaded.config == model.config and not loaded.training
    assert all(loaded.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert loaded(*batch()).equal(model(*batch()))


def test_in_half_precision_the_empty_tokens_stay_exact(tmp_path):
    model = new_model(trained=False)
    model.save(tmp_path / "s.safetensors", torch.float16)
    loaded = SkillTransformer.load(tmp_path / "s.safetensors")
    assert loaded(*batch()).equal(model(*batch()))


def test_golden_slice(model):
    golden = torch.tensor(GOLDEN)
    torch.testing.assert_close(model(*batch())[1, 2, 0, :6].detach(), golden, atol=1e-4, rtol=1e-4)


GOLDEN = [-1.29388, -2.09504, 2.14451, -0.94201, -1.74873, -2.95893]


def test_a_plan_that_is_too_long_is_refused(model):
    tokens, texts, mask = (torch.cat([part, part], dim=1) for part in batch())
    with pytest.raises(KSGenError, match="at most 6 key steps, got 8"):
        model.roll_out(tokens[:, 0], texts, mask)


def test_tokens_of_another_model_are_a_bug(model):
    tokens, texts, mask = batch()
    with pytest.raises(ValueError, match="N, C"):
        model(tokens[..., :-1], texts, mask)


@pytest.mark.parametrize("nonsense", [{"heads": 3}, {"layers": 0}, {"width": 16.0}, {"dropout": 1.0}, {"heads": True}])
def test_a_config_refuses_nonsense(nonsense):
    with pytest.raises(ValueError, match=next(iter(nonsense))):
        replace(SIZES, **nonsense)


def test_bad_files_are_refused_by_name(model, tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(KSGenError, match="s.safetensors is missing"):
        SkillTransformer.load(path)
    model.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KSGenError, match="s.safetensors is cut off"):
        SkillTransformer.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(KSGenError, match="s.safetensors.* not a safetensors file"):
        SkillTransformer.load(path)
    save_weights(path, {"a": torch.zeros(1)}, "ksgen.other/1")
    with pytest.raises(KSGenError, match="holds ksgen.other/1, wanted ksgen.skill_transformer/1"):
        SkillTransformer.load(path)
    save_weights(path, {"a": torch.zeros(1)}, KIND, {"token_width": 4})
    with pytest.raises(KSGenError, match="s.safetensors do not fit"):
        SkillTransformer.load(path)
