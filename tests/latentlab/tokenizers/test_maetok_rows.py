"""MAETok at the size of ImageNet: the published values, both stages at full size, and a narrow step of each."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from latentlab.tokenizers.config import TrainConfig, load_config
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.objectives.vision_networks import VISION_NETWORKS
from latentlab.tokenizers.row_file import merged, read_rows
from latentlab.tokenizers.training import Trainer

FILE = Path(__file__).parents[3] / "studies" / "diffusability" / "maetok.yaml"
ROWS = read_rows(FILE)

NARROW: dict[str, Any] = {
    "data": {"train": "fashion:test", "validation": "fashion:test", "image_size": 32, "limit": 8},
    "architecture": {
        "image_size": 32, "enc_patch_size": 8, "dec_patch_size": 8, "num_latent_tokens": 4, "codebook_embed_dim": 8,
        "embed_dim": 32, "depth": 1, "num_heads": 2, "target_depth": 1,
    },
    "loss": {"perceptual_kind": "st_lpips", "perceptual_net": "alex"},
    "objectives": {"adversarial": {"network": "efficientnet-lite0", "width": 8, "start": 0}},
    "optimiser": {"batch_size": 4, "warmup_steps": 0},
    "rfd": None,
}  # fmt: skip


def test_the_published_values() -> None:
    first, second = (load_config(f"{FILE}#{number}") for number in (1, 2))
    for config in (first, second):
        optim, opponent = config.optimiser, config.objectives.adversarial
        assert (config.loss.l1, config.loss.l2, config.loss.perceptual) == (0, 1, 1)
        assert (optim.learning_rate, optim.weight_decay, optim.betas) == (1e-4, 1e-4, (0.9, 0.95))
        assert (optim.batch_size, optim.warmup_steps, config.data.flip) == (512, 10_000, True)
        assert opponent is not None and (opponent.kind, opponent.network, opponent.weight) == (
            "features",
            "dinov2-s",
            0.4,
        )
        assert opponent.adaptive and opponent.lecam == 0.001
    assert (first.optimiser.steps, second.optimiser.steps, second.architecture["anneal_steps"]) == (
        500_000,
        50_000,
        50_000,
    )
    assert first.objectives.adversarial is not None and first.objectives.adversarial.start == 30_000
    assert first.architecture["targets"] == ["hog", "dinov2-l", "siglip-l"] and first.architecture["target_depth"] == 3
    assert set(first.architecture["targets"]) - {"hog"} <= set(VISION_NETWORKS)


def test_the_second_stage_starts_from_the_folder_of_the_first() -> None:
    start = load_config(f"{FILE}#2").start_from
    folders = re.findall(r"maetok\.yaml#(\d).*\n.*--out (\S+)", FILE.read_text())
    assert folders[0] == ("1", str(start.parent if start else None)) and folders[1][0] == "2"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_both_stages_can_be_built_at_full_size(row: Any) -> None:
    config = TrainConfig.model_validate(row.settings)
    with torch.device("meta"):
        tokenizer = FAMILIES[config.family].build(config.architecture, name=config.name, release=config.release)
    assert sum(p.numel() for p in tokenizer.parameters()) == row.parameters
    assert (tokenizer.spec.layout, tokenizer.spec.channels) == ("sequence", 32)


def test_a_narrow_step_of_each_stage(tmp_path: Path) -> None:
    """All terms, with EfficientNet for the networks whose weights are elsewhere, and ST-LPIPS for LPIPS."""
    here: dict[str, Any] = {"architecture": {"targets": ["hog", "efficientnet-lite0"]}}
    first = Trainer(
        TrainConfig.model_validate(merged(ROWS[0].settings, NARROW, here)), tmp_path / "1", torch.device("cpu")
    )
    usual = {"loss", "l2", "perceptual", "adversarial", "adversarial_weight", "discriminator"}
    assert set(first.train_step()) == usual | {"auxiliary"}
    weights = first.export()
    second = Trainer(
        TrainConfig.model_validate(merged(ROWS[1].settings, NARROW, {"start_from": str(weights)})),
        tmp_path / "2",
        torch.device("cpu"),
    )
    assert set(second.train_step()) == usual
    assert torch.equal(second.model.last_encoder_weight, first.average.last_encoder_weight)
