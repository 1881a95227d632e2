"""Tiny but real language models for tests, of random weights and made in code once a session: a Llama that reads only
text, a Gemma 3 and a Qwen2.5-VL that see."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.planning.mllm_transformers import Mllm
from ksgen_core.types import Example, KeyStep, Plan, Query

KINDS = ("llama", "gemma3", "qwen2_5_vl")
GOAL = "make a cup of tea"
STEPS = ("put the tea bag into the mug", "pour hot water into the mug", "stir the tea with the spoon")
WORDS = [*STEPS, GOAL, "open the door of the cupboard", "cut the bread", "the mug is full", "the table is clean"]
JSON = [
    json.dumps({"steps": [{"text": text, "before": after, "after": text} for text in STEPS]})
    for after in ("the mug is empty", "the mug is full")
]
EXAMPLES = (Example(Plan(GOAL, tuple(map(KeyStep, STEPS))), "tea.jsonl#1", 0.9),)

# Each as the family's own, cut down to what matters here.
LLAMA_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>{{ m['role'] }}\n{{ first if loop.first else '' }}"
    "{% for c in m['content'] %}{{ '<start_of_image>' if c['type'] == 'image' else c['text'] | trim }}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if c['type'] == 'image' else c['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_kept = TemporaryDirectory(prefix="ksgen-tiny-mllm-")


def byte_level(special: list[str], vocab_size: int = 420) -> Tokenizer:
    """A byte-level tokenizer (GPT-2, Llama 3, Qwen) trained on the words above; special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [AddedToken(token, special=True, normalized=False) for token in special]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=tokens, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS + JSON, trainer)
    return tokenizer


@cache
def folder(kind: str) -> Path:
    """The folder of one of `KINDS`; nobody writes into it."""
    path = Path(_kept.name) / kind
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        model, processor = {"llama": _llama, "gemma3": _gemma3, "qwen2_5_vl": _qwen2_5_vl}[kind]()
    with quietly():
        model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@cache
def mllm(kind: str) -> Mllm:
    """Read once; it is only ever read from."""
    return Mllm.load(folder(kind))


def query(seed: int = 0, goal: str = GOAL, height: int = 40, width: int = 56) -> Query:
    return Query(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)), goal)


def _fast(tokenizer: Tokenizer, **kwargs):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    # Padded to a multiple of 64, as in most models: the last logits are of no token.
    config = LlamaConfig(**SHAPE, vocab_size=448, max_position_embeddings=4096, eos_token_id=2, bos_token_id=0)
    fast = _fast(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=LLAMA_CHAT)
    return LlamaForCausalLM(config), fast


def _gemma3():
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = byte_level([*special, *marks.values()])
    fast = _fast(tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", extra_special_tokens=marks)
    ids = {name: tokenizer.token_to_id(token) for name, token in marks.items()}
    text = Gemma3TextConfig(
        **SHAPE | {"num_hidden_layers": 2}, head_dim=16, vocab_size=420, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=4096, eos_token_id=[1, 4], bos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"], eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"], eos_token_id=[1, 4],
    )  # fmt: skip
    images = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    model = Gemma3ForConditionalGeneration(config)
    # transformers begins with zeros there: an untrained model would not see.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, Gemma3Processor(images, fast, chat_template=GEMMA_CHAT, image_seq_length=4)


def _qwen2_5_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks])
    config = Qwen2_5_VLConfig(
        text_config=dict(
            **SHAPE, vocab_size=448, max_position_embeddings=4096,
            rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]}, eos_token_id=2, bos_token_id=0,
        ),
        vision_config=dict(
            depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=14,
            fullatt_block_indexes=[1], window_size=56,
        ),
        vision_start_token_id=tokenizer.token_to_id(marks[0]), vision_end_token_id=tokenizer.token_to_id(marks[1]),
        image_token_id=tokenizer.token_to_id(marks[2]), video_token_id=tokenizer.token_to_id(marks[3]),
    )  # fmt: skip
    fast = _fast(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN_CHAT)

    class Saved:
        """The processor's files without its part for films, which needs torchvision even to be written."""

        @staticmethod
        def save_pretrained(path):
            fast.save_pretrained(path)
            Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 56).save_pretrained(path)
            settings = path / "preprocessor_config.json"
            config = json.loads(settings.read_text()) | {"processor_class": "Qwen2_5_VLProcessor"}
            settings.write_text(json.dumps(config))

    return Qwen2_5_VLForConditionalGeneration(config), Saved
