"""CLIP score: how well images fit the texts they were made for (Hessel et al. 2021, arXiv 2104.08718).

    100 max(cos(E_I, E_T), 0), mean over the pairs

with CLIP's embeddings of an image and of its text (the factor is 100 here, as usual for generators; Hessel et al. take 2.5).
The network is opened with the package ``transformers``, which is not installed with latentlab, from its folder or from the
Hugging Face cache.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.quality.features import FeatureExtractor
from latentlab.quality.frozen_network import FrozenNetwork

DEFAULT_MODEL = "openai/clip-vit-large-patch14"
_TEXTS = 64
"""Texts embedded at a time."""


class ClipModel:
    """CLIP's two towers.

    Attributes:
        name: hub id or folder.
        judge: the image tower as an extractor; its features are the projected embeddings, not normalised.
    """

    def __init__(self, name: str = DEFAULT_MODEL, device: str = "cpu") -> None:
        """Open the model ``name``; nothing is downloaded.

        Raises:
            UserError: ``transformers`` is not installed, or the model is not on this machine.
        """
        try:
            transformers: Any = import_module("transformers")
        except ImportError as error:
            raise UserError("the CLIP score needs the package transformers: pip install transformers") from error
        try:
            self._model: Any = transformers.CLIPModel.from_pretrained(name, local_files_only=True, use_safetensors=True)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"CLIP '{name}' is not on this machine as safetensors: hf download {name}, or give the folder of a model"
            ) from error
        self._model.requires_grad_(False).eval().to(device)
        self.name, self._device = name, device
        side = int(self._model.config.vision_config.image_size)
        content = digest([_sums(self._model), transformers.__version__])
        self.judge = FeatureExtractor(
            f"clip-score-{Path(name).name}", f"fd_clip_score_{Path(name).name}", _ImageTower(self._model, side).to(device),
            device, f"transformers CLIP {name} {content} {side} bicubic", f"{side}x{side} bicubic, antialiased",
        )  # fmt: skip

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:  # => [n,d]
        """Return the projected embeddings of texts, float32; longer ones are cut to what the model reads."""
        length = int(self._model.config.text_config.max_position_embeddings)
        parts = []
        for start in range(0, len(texts), _TEXTS):
            tokens = self._tokenizer(
                list(texts[start : start + _TEXTS]),
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self._device)
            read = self._model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            parts.append(self._model.text_projection(read.pooler_output).float().cpu().numpy())
        return np.concatenate(parts)


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:  # [n,d] twice => [n]
    """Return the score of every pair of embeddings, 0 to 100.

    Raises:
        UserError: not one text per image, or embeddings of different models.
    """
    if images.shape != texts.shape:
        raise UserError(f"{len(images)} images need as many texts of one model, got {list(texts.shape)} embeddings")
    x, y = (table.astype(np.float64) for table in (images, texts))
    cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return 100 * np.maximum(cosines, 0)


def read_texts(path: Path) -> list[str]:
    """Return the lines of a text file, one per image.

    Raises:
        UserError: missing, not UTF-8, or with empty lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file: {error}") from error
    empty = [i for i, line in enumerate(lines) if not line.strip()]
    if not lines or empty:
        raise UserError(f"{path}: {f'line {empty[0] + 1} is empty' if empty else 'no lines'}; one text per image")
    return lines


class _ImageTower(FrozenNetwork):
    """CLIP's image tower behind its preparation of images."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, side: int) -> None:
        super().__init__(model.vision_model)
        self.projection, self._side = model.visual_projection, side
        self.register_buffer("mean", torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None])
        self.register_buffer("std", torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None])

    def prepared(self, images: Tensor) -> Tensor:
        """Return the images at the model's size, normalised per channel."""
        size = (self._side, self._side)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std

    def described(self, prepared: Tensor) -> Tensor:
        """Return the projected embeddings [b,d]."""
        features: Tensor = self.projection(self.network(pixel_values=prepared).pooler_output)
        return features


def _sums(model: Any) -> list[float]:
    """Return a few numbers that change when weights do."""
    return [float(value.double().sum()) for value in model.state_dict().values()]
