"""What training a Skill Transformer costs, computed from its config: parameters, memory, work.

All of it is computed, none of it measured. Legend: D inner width, F feed-forward width, C token width, K text width,
N tokens per image; image tokens are those of all images and plans of a batch, text tokens likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..keysteps.skill_transformer import SkillTransformerConfig
from .loop import Recipe

STATE_BYTES = 4 + 4 + 8 + 4 + 2
"""Of a parameter: weight, gradient, AdamW's two moments, moving average, and the bfloat16 copy that autocast keeps."""
SDXL = {
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "image_encoder": 632_076_800,
    "resampler": 82_961_664,
    "unet": 2_567_463_684,
    "image attention": 340_787_200,
    "vae": 83_653_863,
}
"""Parameters of SDXL's parts and of IP-Adapter-Plus for it (ViT-H): as diffusers and transformers build them."""
ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder", "resampler")
SHARE_OF_PEAK = 0.3
"""How much of a card's stated rate a plain PyTorch training is assumed to reach."""


@dataclass(frozen=True)
class Card:
    """A GPU: its memory in GB and its dense bfloat16 rate in TFLOP/s, as its maker states them."""

    name: str
    memory_gb: int
    tflops: float


CARDS = (
    Card("24 GB (GeForce RTX 4090)", 24, 165.2),  # NVIDIA, "Ada GPU Architecture", appendix A
    Card("80 GB (H100 SXM)", 80, 989.4),  # NVIDIA, "H100 Tensor Core GPU", data sheet, without sparsity
)


@dataclass(frozen=True)
class Costs:
    """Bytes while training (`state` whatever the batch, `activations` of the largest batch) and while encoding, and
    floating-point operations of an iteration of middling length, forward and back.
    """

    parameters: int
    state: int
    activations: int
    encoders: int
    flops: float

    @property
    def training(self) -> int:
        return self.state + self.activations

    @property
    def peak(self) -> int:
        """Encoders and training are never on the device together."""
        return max(self.training, self.encoders)

    def seconds(self, card: Card) -> float:
        """Of an iteration, if the card is kept busy."""
        return self.flops / (SHARE_OF_PEAK * card.tflops * 1e12)


def parameters_of(config: SkillTransformerConfig) -> int:
    """The trainable parameters of a Skill Transformer."""
    c, d, f = config, config.width, config.ff_width
    attention = 4 * d * d + d
    block = 2 * attention + 3 * 2 * d + (d * f + f) + (f * d + d)
    entries = (c.token_width * d + d) + (2 * c.text_width + c.text_width * d + d)
    embeddings = (2 * c.max_images + c.tokens_per_image) * d
    return entries + embeddings + c.layers * block + 2 * d + (d * c.token_width + c.token_width)


def activations_of(config: SkillTransformerConfig, image_tokens: int, text_tokens: int) -> int:
    """Bytes kept for the way back under bfloat16 autocast, with fused attention.

    The residual stream and what LayerNorm reads are float32; every linear layer keeps its own bfloat16 input.
    """
    c, d, f = config, config.width, config.ff_width
    self_attention = 4 * d + 3 * 2 * d + 3 * 2 * d + 2 * d  # residual; inputs of q, k, v; these; what leaves
    cross_attention = 4 * d + 2 * d + 2 * d + 2 * d  # residual; input of q; q; what leaves
    feed_forward = 4 * d + 2 * d + 2 * 2 * f  # residual; input; before and after GELU
    of_image = c.layers * (self_attention + cross_attention + feed_forward)
    of_image += 2 * c.token_width + 4 * d + 2 * d + 2 * 4 * c.token_width  # entry, exit, prediction and its error
    of_text = c.layers * 4 * 2 * d  # inputs of k and v; these
    of_text += 4 * c.text_width + 2 * c.text_width
    return image_tokens * of_image + text_tokens * of_text


def flops_of(config: SkillTransformerConfig, plans: int, images: float, texts: float) -> float:
    """Floating-point operations of a batch forward and back: `images` tokens of images and `texts` of texts a plan.

    A linear layer costs 2 a weight and token forward, and twice that back.
    """
    c, d, f = config, config.width, config.ff_width
    of_image = c.layers * (4 * d * d + 2 * d * d + 2 * d * f) + 2 * d * c.token_width
    of_text = c.layers * 2 * d * d + c.text_width * d
    attention = c.layers * 2 * d * images * (images + texts)
    return 3 * 2 * plans * (images * of_image + texts * of_text + attention)


def costs_of(
    config: SkillTransformerConfig,
    batch: int,
    steps: int,
    tokens_per_text: float,
    encoders: int,
    encoder_bytes: int = 2,
) -> Costs:
    """Of training with `batch` plans of at most `steps` steps on one device, each text having so many tokens.

    `encoders` is the number of the encoders' parameters, `encoder_bytes` that of the bytes of one.
    """
    texts = steps * tokens_per_text
    most, middling = steps - 1, steps / 2  # a batch has 2 to `steps` steps, and one image less is read
    parameters = parameters_of(config)
    activations = activations_of(config, batch * most * config.tokens_per_image, round(batch * texts))
    flops = flops_of(config, batch, middling * config.tokens_per_image, texts)
    return Costs(parameters, STATE_BYTES * parameters, activations, encoder_bytes * encoders, flops)


def spoken(costs: Costs, recipe: Recipe, drawing: int, processes: int = 1) -> str:
    """The costs in words, for each of `CARDS`; `drawing` are the bytes of the whole model, which draws pictures."""
    gb = 1e9
    lines = [
        f"Computed, not measured, in bfloat16, without reading what is encoded, {recipe.batch} "
        f"plans an iteration over {processes} processes:",
        f"  {costs.parameters / 1e6:.1f} M parameters",
        f"  {costs.encoders / gb:.1f} GB to encode, before the training",
        f"  {costs.training / gb:.1f} GB to train: {costs.state / gb:.1f} for weights, gradients, AdamW and average, "
        f"at most {costs.activations / gb:.1f} for activations",
        f"  {(costs.training + drawing) / gb:.1f} GB while pictures are drawn, beside what drawing itself takes",
    ]
    for card in CARDS:
        room = 0.9 * card.memory_gb * gb
        fits = "fits" if costs.training + drawing < room else "fits with --pictures-every 0"
        if costs.peak > room:
            fits = "does not fit, take a smaller --batch"
        seconds = costs.seconds(card)
        lines.append(
            f"  {card.name}: {fits}; {1000 * seconds:.0f} ms an iteration, {recipe.iterations} take "
            f"{recipe.iterations * seconds / 60:.0f} min, at {SHARE_OF_PEAK:.0%} of its stated rate"
        )
    if processes > 1:
        lines.append(f"  each process sends {4 * costs.parameters / gb:.2f} GB of gradients an iteration")
    return "\n".join(lines)
