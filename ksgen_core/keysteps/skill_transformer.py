"""The Skill Transformer: foresees the image tokens of the next key step.

A transformer decoder after "Learning Human Skill Generators at Key-Step Levels" (arXiv 2502.08234). It reads the
tokens of key images 0..i and the texts of all steps, and predicts the tokens of key image i+1.

Legend: B plans, T steps, S key images read (S <= T), N tokens per image, C their width, L tokens per text, K their
width, D inner width. True in a mask means "is there", False means padding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import load_weights, save_weights
from ..errors import KSGenError

KIND = "ksgen.skill_transformer/1"


@dataclass(frozen=True)
class SkillTransformerConfig:
    """Sizes of a `SkillTransformer`; `max_images` is the largest number of steps that a plan may have."""

    token_width: int
    text_width: int
    tokens_per_image: int = 16
    max_images: int = 8
    width: int = 1024
    layers: int = 4
    heads: int = 16
    ff_width: int = 4096
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "dropout":
                if not 0 <= value < 1:
                    raise ValueError(f"dropout is from 0 to below 1, got {value!r}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")


class Attention(nn.Module):
    """Multi-head attention: queries from `x`, keys and values from `context`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x [B, Q, D], context [B, M, D], mask broadcastable to [B, heads, Q, M] -> [B, Q, D]."""
        q, k, v = (
            to(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for to, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm decoder block: self-attention, cross-attention to the texts, feed-forward."""

    def __init__(self, config: SkillTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width, config.heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = Attention(width, config.heads)
        self.norm_ff = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, config.ff_width), nn.GELU(), nn.Linear(config.ff_width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, texts: Tensor, causal: Tensor, text_mask: Tensor) -> Tensor:
        """x [B, S*N, D], texts [B, T*L, D], causal [S*N, S*N], text_mask [B, 1, 1, T*L] -> [B, S*N, D]."""
        y = self.norm_self(x)
        x = x + self.dropout(self.self_attention(y, y, causal))
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), texts, text_mask))
        return x + self.dropout(self.ff(self.norm_ff(x)))


class SkillTransformer(nn.Module):
    """Next-image-token prediction over the key images of a plan.

    `empty_tokens` [N, C] are the image tokens of the zero image. The prediction is these plus an exit that begins at
    zero: before training, every predicted image says "no image", as the backbone knows it from guidance.
    """

    def __init__(self, config: SkillTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.from_tokens = nn.Linear(config.token_width, width)
        self.from_texts = nn.Sequential(nn.LayerNorm(config.text_width), nn.Linear(config.text_width, width))
        # About as strong as what they are added to: which text comes next must be found from the first iteration on.
        self.image_embedding = nn.Parameter(torch.randn(config.max_images, 1, width) * 0.5)
        self.token_embedding = nn.Parameter(torch.randn(1, config.tokens_per_image, width) * 0.5)
        self.step_embedding = nn.Parameter(torch.randn(config.max_images, 1, width) * 0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(width)
        self.to_tokens = nn.Linear(width, config.token_width)
        nn.init.zeros_(self.to_tokens.weight)
        nn.init.zeros_(self.to_tokens.bias)
        self.register_buffer("empty_tokens", torch.zeros(config.tokens_per_image, config.token_width))

    def forward(self, tokens: Tensor, texts: Tensor, text_mask: Tensor) -> Tensor:
        """tokens [B, S, N, C] of key images 0..S-1, texts [B, T, L, K] of all steps, text_mask [B, T, L] (False:
        padding, of a text or of a whole step) -> predicted tokens [B, S, N, C] of key images 1..S.

        Image i sees images 0..i and all texts. Raises `KSGenError` if the plan has more than `max_images` steps.
        """
        config = self.config
        steps, images = texts.shape[1], tokens.shape[1]
        if tokens.shape[2:] != (config.tokens_per_image, config.token_width):
            wanted = (config.tokens_per_image, config.token_width)
            raise ValueError(f"image tokens must be [B, S, N, C] with N, C = {wanted}, got {tuple(tokens.shape)}")
        if max(steps, images) > config.max_images:
            raise KSGenError(
                f"The Skill Transformer was made for at most {config.max_images} key steps, got "
                f"{max(steps, images)}. Split the plan, or choose the policy 'reference'."
            )
        x = self.from_tokens(tokens) + self.image_embedding[:images] + self.token_embedding
        context = self.from_texts(texts) + self.step_embedding[:steps]
        causal = causal_by_image(images, config.tokens_per_image, tokens.device)
        x, context, mask = x.flatten(1, 2), context.flatten(1, 2), text_mask.flatten(1)[:, None, None, :]
        for block in self.blocks:
            x = block(x, context, causal, mask)
        change = self.to_tokens(self.norm_out(x))
        return self.empty_tokens + change.unflatten(1, (images, config.tokens_per_image))

    def roll_out(self, tokens: Tensor, texts: Tensor, text_mask: Tensor, steps: int | None = None) -> Tensor:
        """From the tokens [B, N, C] of the initial picture to those [B, T, N, C] of all key images, one after another.

        Key image 0 is the initial picture itself. `steps` stops early: only that many key images come back.
        """
        images = tokens[:, None]
        for _ in range((texts.shape[1] if steps is None else steps) - 1):
            images = torch.cat([images, self(images, texts, text_mask)[:, -1:]], dim=1)
        return images

    def loss(
        self, tokens: Tensor, texts: Tensor, text_mask: Tensor, is_step: Tensor, context_weight: float = 0.0
    ) -> Tensor:
        """Teacher-forced loss: MSE(prediction, next image) + context_weight * MSE(prediction, initial picture).

        tokens [B, T, N, C] of all key images, is_step [B, T] (False: padding) -> scalar, a mean over real targets.
        """
        predicted, is_target = self(tokens[:, :-1], texts, text_mask), is_step[:, 1:]
        error = (predicted - tokens[:, 1:]).square().mean((-2, -1))
        if context_weight:
            error = error + context_weight * (predicted - tokens[:, :1]).square().mean((-2, -1))
        return error.where(is_target, 0.0).sum() / is_target.sum().clamp(min=1)

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write weights, kind and config to a safetensors file, in `dtype` if it is given."""
        # The empty tokens stay exact: an untrained model must give the very tokens of the zero image.
        keep = {"empty_tokens"} if dtype is not None else set(self.state_dict())
        tensors = {name: t if name in keep else t.to(dtype) for name, t in self.state_dict().items()}
        save_weights(path, tensors, KIND, asdict(self.config))

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> SkillTransformer:
        """Read what `save` wrote. Raises `KSGenError`, naming the file, if it is not that."""
        tensors, config = load_weights(path, KIND)
        try:
            model = cls(SkillTransformerConfig(**config))
            model.load_state_dict(tensors)
        except (TypeError, ValueError, RuntimeError) as error:
            raise KSGenError(f"The weights in {path} do not fit their config ({error}). Get the file again.") from error
        return model.to(device, dtype).eval()


def causal_by_image(images: int, tokens_per_image: int, device: torch.device | str = "cpu") -> Tensor:
    """Mask [S*N, S*N]: the tokens of image i see all tokens of images 0..i."""
    image = torch.arange(images, device=device).repeat_interleave(tokens_per_image)
    return image[:, None] >= image[None, :]
