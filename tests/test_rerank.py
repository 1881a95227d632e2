"""Examples that begin as the picture looks come first; the vectors are those of transformers' CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_clip import new_clip_folder

from ksgen_core.errors import KSGenError
from ksgen_core.retrieval.mllm_clip import CLIP_MEAN, CLIP_STD, PictureText
from ksgen_core.retrieval.rerank import rerank
from ksgen_core.types import Example, KeyStep, Plan

SIDE = 32
TEXTS = ["The mug is empty.", "A tea bag is in the mug.", "The pan is on the stove."]


def example(before: str | None, score: float) -> Example:
    return Example(Plan("make tea", (KeyStep("pour", before), KeyStep("stir", "The pan is on the stove."))), "s", score)


def directions(texts) -> np.ndarray:
    """One axis a text."""
    return np.eye(3, dtype=np.float32)[[TEXTS.index(text) for text in texts]]


def shown(picture: torch.Tensor) -> np.ndarray:
    return np.array([0.2, 0.3, 0.1], np.float32)


PICTURE = torch.rand(40, 50, 3, generator=torch.Generator().manual_seed(0))


def test_the_example_whose_beginning_the_picture_shows_comes_first():
    given = (example(TEXTS[0], 0.7), example(TEXTS[1], 0.65), example(TEXTS[2], 0.6))
    found = rerank(given, PICTURE, shown, directions)
    assert [e.plan.steps[0].before for e in found] == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert [e.score for e in found] == pytest.approx([0.85, 0.7, 0.4])
    assert rerank(given, PICTURE, shown, directions, weight=0) == given
    assert {e.plan for e in found} == {e.plan for e in given}


def test_what_does_not_say_how_it_begins_keeps_its_score():
    given = (example(None, 0.9), example(TEXTS[0], 0.5), example(TEXTS[1], 0.5), example(None, 0.1))
    found = rerank(given, PICTURE, shown, directions)
    assert [e.score for e in found] == pytest.approx([0.9, 0.6, 0.4, 0.1])
    for few in ((), given[:1], given[:2]):
        assert rerank(few, PICTURE, shown, directions) == few, "there is nothing to compare"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return new_clip_folder(tmp_path_factory.mktemp("clip"), TEXTS, SIDE)


def test_vectors_are_those_of_the_whole_model(folder):
    from transformers import CLIPModel, CLIPTokenizer

    clip, model = PictureText(folder), CLIPModel.from_pretrained(folder).eval()
    picture = torch.rand(SIDE, SIDE, 3).mul(255).round() / 255
    pixels = (picture - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    for text in TEXTS:
        given = CLIPTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        with torch.no_grad():
            whole = model(pixel_values=pixels.permute(2, 0, 1)[None], **given)
        np.testing.assert_allclose(clip.texts([text])[0], whole.text_embeds[0], atol=1e-5)
        np.testing.assert_allclose(clip.picture(picture), whole.image_embeds[0], atol=1e-5)
    together = clip.texts([*TEXTS, "tea " * 50])
    np.testing.assert_allclose(together[:3], np.stack([clip.texts([text])[0] for text in TEXTS]), atol=1e-5)
    assert together.shape == (4, 12)


def test_a_picture_of_any_shape_is_seen_and_left_as_it_was(folder):
    clip, before = PictureText(folder), PICTURE.clone()
    found = rerank([example(text, 0.5) for text in TEXTS], PICTURE, clip.picture, clip.texts)
    assert len(found) == 3 and PICTURE.equal(before)
    assert np.linalg.norm(clip.picture(PICTURE)) == pytest.approx(1, abs=1e-5)


def test_a_folder_of_another_class_is_named(folder, tmp_path):
    with pytest.raises(KSGenError, match="lacks config.json"):
        PictureText(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(KSGenError, match="model.safetensors is cut off"):
        PictureText(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(KSGenError, match="'siglip', wanted 'clip'"):
        PictureText(tmp_path)
