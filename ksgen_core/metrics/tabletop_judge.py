"""Judges that read Tabletop pictures and clips, trained on true renders only: they never see a generated picture.

Legend: B pictures, H facts, K coloured objects, V values of one fact (0: object not in the picture).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints import load_weights, save_weights

KIND = "ksgen.tabletop_judge/1"
CLIP_FRAMES = (4, 8, 12, 16)
"""The frames an action judge looks at: not the first, which is the given key image."""


@dataclass(frozen=True)
class JudgeConfig:
    """`frames` pictures are stacked along the channels; `outputs` are the heads' class counts, one after another."""

    frames: int
    outputs: tuple[int, ...]
    width: int = 32

    def __post_init__(self) -> None:
        if self.frames < 1 or self.width < 8 or not self.outputs:
            raise ValueError(f"a judge needs frames >= 1, width >= 8 and at least one head, got {self}")


class _Block(nn.Module):
    """Two 3x3 convolutions with a short cut; halves the size if `stride` is 2."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.skip(x))


class Judge(nn.Module):
    """A small residual network; its answer joins the mean and the maximum over the picture."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.body = nn.Sequential(
            nn.Conv2d(3 * config.frames, w, 5, 2, 2, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(),
            _Block(w, 2 * w, 2),
            _Block(2 * w, 3 * w, 2),
            _Block(3 * w, 5 * w, 2),
            _Block(5 * w, 6 * w, 1),
        )
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(12 * w, sum(config.outputs)))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """pictures [B, 3 * frames, S, S] in 0..1 -> logits, one [B, V] per head."""
        x = self.body(pictures * 2 - 1)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return list(self.head(pooled).split(self.config.outputs, 1))

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Tensor:
        """pictures [B, 3 * frames, S, S] -> labels [B, heads]."""
        return torch.stack([logits.argmax(1) for logits in self(pictures)], 1)

    def save(self, path: Path) -> None:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in self.state_dict().items()}
        save_weights(path, tensors, KIND, asdict(self.config))

    @classmethod
    def load(cls, path: Path) -> Judge:
        tensors, config = load_weights(path, KIND)
        judge = cls(JudgeConfig(config["frames"], tuple(config["outputs"]), config["width"]))
        judge.load_state_dict(tensors)
        return judge.float().eval()
