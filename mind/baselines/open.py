"""From the weight file of a baseline to a generator that is ready to draw."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentlab.errors import UserError
from latentlab.files import file_sha256
from mind.baselines.generators import BaselineGenerator, sampler_settings
from mind.baselines.weight_files import load_baseline
from mind.open_generator import TokenizerChoice, check_weighting, chosen_tokenizer


def open_baseline(
    kind: str,
    weights: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: TokenizerChoice = TokenizerChoice(),
    precision: str | None = None,
    device: torch.device | str = "cpu",
    averaged: bool | None = None,
) -> BaselineGenerator:
    """Return a baseline with these weights, ready to draw.

    Args:
        kind: ``sit``, ``dit``, ``lightningdit`` or ``emigm``.
        weights: what `latentlab train` exported, or the folder of the run.
        settings: sampler settings that differ from those the weight file recommends.
        tokenizer: what decodes the latents, where it is not to be what the weight file says.
        precision: of the network; None for ``float32``.
        device: where everything runs.
        averaged: whether to take the averaged or the raw weights of a training run; None for the averaged ones of a folder, which
            all published numbers of these generators are of, and for what a file holds.

    Raises:
        UserError: weights or tokenizer that are missing, damaged, of another kind or do not fit each other, an unknown setting.
    """
    path = Path(weights)
    if path.is_dir():
        path = path / f"{kind}{'' if averaged is False else '_ema'}.safetensors"
        if not path.is_file():
            raise UserError(
                f"{weights} holds no {path.name}: is it the folder of `latentlab train {kind}`, and finished?"
            )
    network, header = load_baseline(path)
    check_weighting(path, header.metadata, averaged)
    if header.kind != kind:
        raise UserError(f"{path} holds weights of {header.kind}: use latentlab sample {header.kind}")
    decoder = chosen_tokenizer(tokenizer, header.tokenizer, path)
    chosen = sampler_settings(kind, {**header.sampler, **(settings or {})})
    return BaselineGenerator(
        network.to(device),
        kind,
        decoder.to(device),
        header.affine,
        chosen,
        precision=precision or "float32",
        weights_sha256=file_sha256(path),
    )
