"""Put those examples first that begin as the picture looks.

The picture is held against what is seen before the first step of each example, by any embedding of pictures and texts
in one space, such as CLIP (Radford et al., 2021): `mllm_clip.PictureText` loads one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..types import Example

if TYPE_CHECKING:
    import numpy as np
    import torch

PICTURE_WEIGHT = 2.0
"""CLIP's cosines of a picture with texts differ by some hundredths; as much as scores of examples then count."""


def rerank(
    examples: Sequence[Example],
    picture: torch.Tensor,
    embed_picture: Callable[[torch.Tensor], np.ndarray],
    embed_texts: Callable[[Sequence[str]], np.ndarray],
    weight: float = PICTURE_WEIGHT,
) -> tuple[Example, ...]:
    """The same examples with new scores, best first.

    `picture` [H, W, 3]; the embeddings give vectors of length 1, [C] and [texts, C]. To a score comes `weight` times
    what the picture fits the example's beginning better than it fits the others' on the average. An example that does
    not say what is seen before its first step keeps its score.
    """
    known = [n for n, example in enumerate(examples) if example.plan.steps[0].before]
    if len(known) < 2:
        return tuple(examples)
    fit = embed_texts([examples[n].plan.steps[0].before or "" for n in known]) @ embed_picture(picture)
    better = dict(zip(known, fit - fit.mean(), strict=True))
    scored = (replace(e, score=e.score + weight * float(better.get(n, 0.0))) for n, e in enumerate(examples))
    return tuple(sorted(scored, key=lambda example: -example.score))
