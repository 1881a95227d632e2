"""What training a LoRA on Wan's or LTX-Video's transformer costs, computed from its sizes: parameters, memory, work.

All of it is computed, none of it measured. Legend: D inner width, F feed-forward width, S tokens of a clip, L tokens of
a text, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .skill_costs import CARDS, SHARE_OF_PEAK, Card

ROOM = 0.9
"""The share of a card's memory that a training may fill: CUDA itself and gaps between blocks take the rest."""


@dataclass(frozen=True)
class Sizes:
    """Of a transformer: blocks, D, F, L, all its parameters, and whether every token has its own timestep. `others` are
    the parameters of the parts that encode, `patch` the pixels (frames, height, width) of a token, `shown` the
    parameters of the parts beside it that make a clip: all but the text encoders.
    """

    name: str
    layers: int
    width: int
    ff_width: int
    text_tokens: int
    parameters: int
    times: bool
    others: int
    patch: tuple[int, int, int]
    shown: int = 0

    def tokens(self, frames: int, height: int, width: int) -> int:
        """S of a clip; the first frame is a latent of its own."""
        t, h, w = self.patch
        return ((frames - 1) // t + 1) * (height // h) * (width // w)


WAN_14B = Sizes("Wan 2.2 14B", 40, 5120, 13824, 512, 14_288_901_184, False, 5_807_802_867, (4, 16, 16), 14_415_793_715)
WAN_5B = Sizes("Wan 2.2 5B", 30, 3072, 14336, 512, 4_999_787_712, True, 6_385_599_004, (4, 32, 32), 704_688_668)
"""As diffusers and transformers build them; the parts that encode are UMT5-XXL's encoder and the VAE."""


def sizes_of(name: str, config: Mapping[str, Any], parameters: int, others: int, **more: Any) -> Sizes:
    """Of a transformer of Wan or LTX-Video with this config of diffusers."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return Sizes(name, config["num_layers"], width, config.get("ffn_dim") or 4 * width, parameters=parameters,
                 others=others, **more)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """Bytes while training, by what they are for, and while encoding; floating-point operations of one clip's pass,
    forward and back.
    """

    lora: int
    weights: int
    state: int
    activations: int
    encoders: int
    flops: float

    @property
    def training(self) -> int:
        return self.weights + self.state + self.activations

    def seconds(self, card: Card) -> float:
        """Of a clip's pass, if the card is kept busy."""
        return self.flops / (SHARE_OF_PEAK * card.tflops * 1e12)

    def room_for(self, card: Card, tokens: int) -> int:
        """The tokens of a clip with which it fits there, if it takes this with `tokens`; none if it does not."""
        left = ROOM * card.memory_gb * 1e9 - self.weights - self.state
        return max(0, int(left * tokens / self.activations))


def lora_parameters(sizes: Sizes, rank: int) -> int:
    """Of a LoRA on the four projections of both attentions and the two layers of the feed-forward."""
    return sizes.layers * rank * (8 * 2 * sizes.width + 2 * (sizes.width + sizes.ff_width))


def block_activations(sizes: Sizes, tokens: int, rank: int) -> int:
    """Bytes that one block keeps for the way back: base in bfloat16, LoRA in float32, fused attention.

    A frozen layer keeps nothing of its input, a LoRA keeps it in float32.
    """
    d, f = sizes.width, sizes.ff_width
    self_attention = 4 * d + 3 * 4 * d + 2 * 2 * d + 4 * 2 * d + 4 * d  # norm; q, k, v; their norms; these, exit; LoRA
    cross_attention = 4 * d + 4 * d + 2 * d + 2 * 2 * d + 4 * d  # norm; q; its norm; this, exit; LoRA
    feed_forward = 4 * d + 4 * d + 2 * f + 4 * f  # norm; LoRA; GELU; LoRA
    of_token = self_attention + cross_attention + feed_forward + 10 * 4 * rank
    if sizes.times:
        of_token += 6 * 4 * d + 2 * 4 * d  # shifts, scales and gates of every token; 1 + scale
    of_text = 2 * 4 * d + 2 * d + 2 * 2 * d
    return tokens * of_token + sizes.text_tokens * of_text


def costs_of(
    sizes: Sizes, rank: int, tokens: int, at_once: int, checkpointing: bool, ema: bool, fp8: bool = False
) -> Costs:
    """Of training with so many clips of S tokens on the device together, the base in bfloat16 or kept in 8 bits."""
    lora = lora_parameters(sizes, rank)
    kept = at_once * block_activations(sizes, tokens, rank)
    if checkpointing:
        kept += sizes.layers * at_once * tokens * 2 * sizes.width
    else:
        kept *= sizes.layers
    if sizes.times:
        kept += at_once * tokens * 6 * 2 * sizes.width  # the timesteps of all tokens, which every block reads
    d, s, texts = sizes.width, tokens, sizes.text_tokens
    linear = s * (6 * d * d + 2 * d * sizes.ff_width) + texts * 2 * d * d
    attention = 2 * s * s * d + 2 * s * texts * d
    trained = s * (lora / sizes.layers)
    again = 1 if checkpointing else 0
    # Frozen layers have only the way back to their input; the two products of attention go back to both factors.
    work = 2 * sizes.layers * (linear * (2 + again) + attention * (3 + again) + trained * (3 + again))
    weights = sizes.parameters * 2
    if fp8:
        weights = sizes.parameters + 2 * sizes.parameters // sizes.layers  # one block is out of its 8 bits
    return Costs(lora, weights, lora * (4 + 4 + 8 + 4 * ema), kept, 2 * sizes.others, work)


def spoken(
    sizes: Sizes, form: tuple[int, int, int], rank: int, batch: int, iterations: int, at_once: int = 1,
    checkpointing: bool = True, ema: bool = False, fp8: bool = False,
) -> str:  # fmt: skip
    """The costs in words, for each of `CARDS`; `form` are frames, height and width of a clip."""
    gb = 1e9
    frames, height, width = form
    tokens = sizes.tokens(*form)
    costs = costs_of(sizes, rank, tokens, at_once, checkpointing, ema, fp8)
    making = costs.weights + costs.state + 2 * sizes.shown
    options = f"{' --gradient-checkpointing' * checkpointing}{' --fp8' * fp8}"
    lines = [
        f"{sizes.name}, clips of {frames} frames of {width}x{height} ({tokens} tokens), --rank {rank} --batch {batch} "
        f"--at-once {at_once}{options}. Computed, not measured, in bfloat16, without reading what is encoded:",
        f"  {costs.lora / 1e6:.1f} M parameters of {sizes.parameters / 1e6:.0f} M",
        f"  {costs.encoders / gb:.1f} GB to encode, before the training, beside what the VAE keeps of a clip",
        f"  {costs.training / gb:.1f} GB to train: {costs.weights / gb:.1f} for the frozen weights, "
        f"{costs.state / gb:.1f} for the LoRA and AdamW, {costs.activations / gb:.1f} for activations",
        f"  {making / gb:.1f} GB while clips are made on the way, beside what making itself takes",
    ]
    for card in CARDS:
        most = costs.room_for(card, tokens)
        fits = f"fits, also with {most // 100 * 100} tokens" if most >= tokens else "does not fit"
        if most >= tokens and making > ROOM * card.memory_gb * gb:
            fits += ", with --clips-every 0"
        if 100 <= most < tokens:
            fits += f", at most {most // 100 * 100} tokens do"
        seconds = batch * costs.seconds(card)
        lines.append(
            f"  {card.name}: {fits}; {seconds:.3g} s an iteration, {iterations} take {iterations * seconds / 3600:.3g} "
            f"h, at {SHARE_OF_PEAK:.0%} of its stated rate"
        )
    return "\n".join(lines)
