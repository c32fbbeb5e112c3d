"""A training as small as they get, and what it leaves."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from latentlab.run_folder import RunFolder
from mind.mind_recipe import MindTrainer as Trainer
from mind.train_config import load_config

CPU = torch.device("cpu")
TINY = {
    "name": "tiny",
    "model": {
        "size": "mind-fashion", "hidden_size": 16, "num_heads": 2, "num_blocks": 2, "cond_dim": 8, "mapper_width": 16,
    },
    "data": {"tokenizer": "ibq", "release": "fashion32", "train": "fashion:test", "limit": 40},
    # A large epsilon and no clipping: with AdamW's usual ones a gradient of the wrong size would change nothing.
    "optimiser": {
        "steps": 6, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 2, "epsilon": 1e-3, "clip_norm": 1e3,
    },
    "loss": {"soft_top_k": 10},
    "precision": "float32", "log_every": 1, "checkpoint_every": 3,
}  # fmt: skip


def tiny(config_file: Path, out: Path, *overrides: str) -> Trainer:
    return Trainer(load_config(config_file, overrides), out, CPU)


def weights(out: Path) -> dict[str, Tensor]:
    both = {name: load_file(out / f"{name}.safetensors") for name in ("mind", "mind_ema")}
    return {f"{file}.{name}": tensor for file, state in both.items() for name, tensor in state.items()}


def logged(out: Path) -> list[dict[str, Any]]:
    timing = ("seconds_per_step", "peak_memory_gib")
    return [{k: v for k, v in line.items() if k not in timing} for line in RunFolder(out).metrics()]


def assert_same_bits(out: Path, straight: Path) -> None:
    mine, theirs = weights(out), weights(straight)
    assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert logged(out) == logged(straight)


def encoded_training_images() -> str:
    """Override that takes the encoded training images as held-out ones, so that nothing more is encoded."""
    stores = Path(os.environ["LATENTLAB_HOME"], "stores")
    (store,) = (path for path in stores.iterdir() if "mirrored" not in path.name)
    return f"data.validation_store={store}"
