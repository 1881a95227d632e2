"""Pictures and texts in one space: a CLIPModel folder of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import read_json, read_metadata
from ..errors import KSGenError
from ..pixels import fit

if TYPE_CHECKING:
    import numpy as np
    import torch

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on; what its folders have where they say nothing else."""
FILES = ("config.json", "model.safetensors", "tokenizer_config.json", "preprocessor_config.json")


class PictureText:
    """What `rerank` needs. Raises `KSGenError` if the folder is none of the class CLIPModel."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if missing := [file for file in FILES if not (folder / file).is_file()]:
            raise KSGenError(
                f"The CLIP folder {folder} lacks {', '.join(missing)}. Give a folder of the class CLIPModel."
            )
        if (kind := read_json(folder / "config.json").get("model_type")) != "clip":
            raise KSGenError(f"{folder} holds a model of type {kind!r}, wanted 'clip'. Give a folder of CLIPModel.")
        read_metadata(folder / "model.safetensors")  # says so if the file is cut off or no such file

        import torch
        from transformers import AutoTokenizer, CLIPModel

        try:
            loaded: Any = CLIPModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            self.model: Any = model.eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise KSGenError(
                f"The CLIP model in {folder} cannot be loaded ({error}). Get that folder again."
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise KSGenError(f"The CLIP model in {folder} lacks {', '.join(missing[:3])}. Get that folder again.")
        processor = read_json(folder / "preprocessor_config.json")
        self.mean, self.std = processor.get("image_mean", CLIP_MEAN), processor.get("image_std", CLIP_STD)

    def picture(self, picture: torch.Tensor) -> np.ndarray:
        """[H, W, 3] -> [C] of length 1: its largest centred square, at the model's size."""
        import torch

        side = self.model.config.vision_config.image_size
        pixels = (fit(picture, side, side) - torch.tensor(self.mean)) / torch.tensor(self.std)
        with torch.inference_mode():
            seen = self.model.vision_model(pixel_values=pixels.permute(2, 0, 1)[None]).pooler_output
            return torch.nn.functional.normalize(self.model.visual_projection(seen), dim=-1)[0].numpy()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, C] of length 1; what is longer than the model reads is cut off."""
        import torch

        most = self.model.config.text_config.max_position_embeddings
        given = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        with torch.inference_mode():
            read = self.model.text_model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
            return torch.nn.functional.normalize(self.model.text_projection(read.pooler_output), dim=-1).numpy()
