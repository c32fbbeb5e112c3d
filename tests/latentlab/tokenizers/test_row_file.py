"""The 86 tokenizers of the published study: their names and sizes, and a narrow training step of every cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from latentlab.errors import UserError
from latentlab.tokenizers.config import TrainConfig, load_config
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.objectives.alignment import Alignment
from latentlab.tokenizers.objectives.patch_discriminator import PatchDiscriminator
from latentlab.tokenizers.objectives.vision_networks import VISION_NETWORKS, vision_width
from latentlab.tokenizers.row_file import Row, merged, read_rows, row_settings
from latentlab.tokenizers.training import Trainer

FILE = Path(__file__).parents[3] / "studies" / "diffusability" / "imagenet.yaml"
ROWS = read_rows(FILE)

NARROW: dict[str, dict[str, Any]] = {
    "ldm": {"ch": 8, "ch_mult": [1, 1, 1], "norm_groups": 4, "num_res_blocks": 1, "z_channels": 4, "resolution": 16},
    "transformer": {"downsampling": 4, "embed_dim": 4, "width": 16, "depth": 1, "heads": 2, "resolution": 16},
}


@pytest.fixture(scope="module")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return f"imagefolder:{folder}"


def names(architecture: str, cluster: str) -> list[str]:
    return [row.name for row in ROWS if row.architecture == architecture and row.cluster == cluster]


def test_the_rows_are_those_of_the_table() -> None:
    assert [row.id for row in ROWS] == list(range(1, 87))
    by_architecture = {
        name: [row.id for row in ROWS if row.architecture == name] for name in ("conv-f16d32", "conv-f16d64")
    }
    assert by_architecture == {"conv-f16d32": list(range(1, 44)), "conv-f16d64": list(range(44, 66))}
    known = {
        1: "baseline", 2: "CLIP-L repa", 5: "CLIP-L mdms", 10: "CRadio-L mcos+mdms", 16: "DINOv3-B repa",
        21: "LangPE-L mcos+mdms", 26: "MoCov3-L mcos+mdms", 30: "SpatialPE-L mcos+mdms", 34: "WebSSL-300m mdms",
        35: "eq scale", 36: "eq flip",
        40: "lcr w0.05-th0.90", 43: "lmr p0.1-0.05-0.05", 44: "baseline", 61: "eq scale", 65: "lmr p0.1-0.05-0.05",
        66: "baseline", 82: "MAE-L mdms", 86: "mae r0.7",
    }  # fmt: skip
    assert {number: ROWS[number - 1].name for number in known} == known
    counts = {cluster: sum(row.cluster == cluster for row in ROWS) for cluster in ("repa", "mcos", "mdms", "mcos+mdms")}
    assert counts == {"repa": 14, "mcos": 14, "mdms": 14, "mcos+mdms": 23}
    assert names("conv-f16d32", "lmr") == [f"lmr p0.1-{r}-{r}" for r in ("0.15", "0.10", "0.05")]
    assert names("trans-f16d32", "mae") == ["mae r0.3", "mae r0.7"]


def test_words_become_settings() -> None:
    def objectives(number: int) -> Any:
        return load_config(f"{FILE}#{number}").objectives

    assert objectives(1).alignment is None and objectives(1).adversarial.start == 5001
    assert (objectives(17).alignment.network, objectives(17).alignment.mcos, objectives(17).alignment.mdms) == (
        "dinov3-b",
        1,
        1,
    )
    assert (
        objectives(17).alignment.repa == 0
        and objectives(17).alignment.weight == 0.1
        and objectives(17).alignment.adaptive
    )
    assert objectives(35).equivariance.transforms == ("scale",) and objectives(36).equivariance.transforms == ("flip",)
    assert (objectives(40).local_correlation.weight, objectives(40).local_correlation.threshold) == (0.05, 0.9)
    assert (objectives(41).masking.probability, objectives(41).masking.noise_ratio) == (0.1, 0.15)
    assert load_config(f"{FILE}#85").architecture["mask_ratio"] == 0.3
    assert load_config(f"{FILE}#85", ["optimiser.batch_size=8"]).optimiser.batch_size == 8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.id} {row.name}")
def test_every_row_can_be_built_at_full_size(row: Row) -> None:
    config = TrainConfig.model_validate(row.settings)
    assert config.objectives.adversarial is not None and config.loss.kl == pytest.approx(1e-6 / (3 * 256**2), rel=1e-3)
    with torch.device("meta"):
        tokenizer = FAMILIES[config.family].build(config.architecture, name=config.name, release=config.release)
        judge = PatchDiscriminator(config.objectives.adversarial.width, config.objectives.adversarial.layers)
    assert sum(p.numel() for p in tokenizer.parameters()) == row.parameters
    assert sum(p.numel() for p in judge.parameters()) == 2_765_633
    channels = int(row.architecture.rpartition("d")[2])
    assert tokenizer.spec.channels == channels and tokenizer.spec.downsampling == 16
    wanted = config.objectives.alignment
    if wanted is not None:
        assert wanted.network in VISION_NETWORKS
        with torch.device("meta"):
            projection = Alignment(wanted, channels, vision_width(wanted.network))
        width = 768 if row.name.split()[0][-1] == "B" else 1024
        read = wanted.repa or wanted.mcos  # mdms alone compares cells of the latent with each other
        assert sum(p.numel() for p in projection.parameters()) == (channels * width if read else 0)


def test_a_part_of_a_step_fits_on_the_gpu_of_the_header() -> None:
    """What encoder and decoder keep for the gradient, counted on tensors without memory; LPIPS and the rest need about 0.2 GB."""
    header = FILE.read_text().partition("base:")[0]
    assert (
        "one GPU of 80 GB" in header
        and "take 1.0 GB in conv" in header
        and "0.6 GB more where eq decodes twice" in header
    )
    config = load_config(f"{FILE}#1")
    with FakeTensorMode():
        tokenizer = FAMILIES[config.family].build(config.architecture, name=config.name, release=config.release)
        encoded = (
            kept_bytes(lambda: tokenizer.quant_conv(tokenizer.encoder(torch.empty(1, 3, 256, 256))), tokenizer) / 1e9
        )
        decoded = (
            kept_bytes(lambda: tokenizer.reconstruct(torch.empty(1, 32, 16, 16).requires_grad_()), tokenizer) / 1e9
        )
    assert encoded + decoded == pytest.approx(1.0, abs=0.05) and decoded == pytest.approx(0.6, abs=0.05)
    part = config.optimiser.batch_size // config.optimiser.accumulate
    assert part == 32 and part * (encoded + 2 * decoded + 0.2) < 70


def kept_bytes(compute: Callable[[], Tensor], module: torch.nn.Module) -> int:
    """Return the bytes that ``compute`` keeps for the gradient in bfloat16, beside the weights of ``module``."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        compute()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


CLUSTERS = {(row.architecture.partition("-")[0], row.cluster): row for row in reversed(ROWS)}


@pytest.mark.parametrize("row", CLUSTERS.values(), ids=lambda row: f"{row.architecture} {row.name}")
def test_a_narrow_step_of_every_cluster(row: Row, small_images: str, tmp_path: Path) -> None:
    """Every objective of the row, but small networks, EfficientNet's features, and no LPIPS."""
    family = row.settings.get("family", "ldm")
    narrow: dict[str, Any] = {
        "data": {"train": small_images, "validation": small_images, "image_size": 16},
        "rfd": None,
        "architecture": NARROW[family],
        "loss": {"perceptual": 0.0},
        "objectives": {"adversarial": {"width": 8, "layers": 1, "start": 0}},
        "optimiser": {"batch_size": 4, "steps": 1, "accumulate": 2},
    }
    if "alignment" in row.settings["objectives"]:
        narrow["objectives"]["alignment"] = {"network": "efficientnet-lite0"}
    trainer = Trainer(TrainConfig.model_validate(merged(row.settings, narrow)), tmp_path, torch.device("cpu"))
    before = trainer.model.last_encoder_weight.detach().clone()
    terms = trainer.train_step()
    special = {
        "repa": {"repa"}, "mcos": {"mcos"}, "mdms": {"mdms"}, "mcos+mdms": {"mcos", "mdms"}, "eq": {"equivariance"},
        "lcr": {"local_correlation", "local_correlation_weight"},
    }.get(row.cluster, set())  # fmt: skip
    aligned = {"alignment", "alignment_weight"} if "alignment" in narrow["objectives"] else set()
    usual = {"loss", "l1", "kl", "adversarial", "adversarial_weight", "discriminator"}
    assert set(terms) == usual | special | aligned
    assert not torch.equal(trainer.model.last_encoder_weight, before)


def test_mistakes_are_told(tmp_path: Path) -> None:
    rows = r"its rows: 1 is conv-f16d32 baseline, 2 is conv-f16d32 CLIP-L repa, .*, 86 is "
    for row in ("87", "0", "baseline"):
        with pytest.raises(UserError, match=f"has no row '{row}'; {rows}"):
            load_config(f"{FILE}#{row}")
    with pytest.raises(UserError, match=f"holds many configurations: choose one as .*imagenet.yaml#ID; {rows}"):
        load_config(FILE)
    with pytest.raises(UserError, match="is not a readable YAML file"):
        row_settings(tmp_path / "absent.yaml", "1")
    (tmp_path / "wrong.yaml").write_text("base: {}\n")
    with pytest.raises(UserError, match=r"is not a file of rows: .*architectures"):
        row_settings(tmp_path / "wrong.yaml", "1")
    (tmp_path / "word.yaml").write_text(FILE.read_text().replace("- CLIP-L: &four", "- CLIP-M: &four"))
    with pytest.raises(UserError, match=r"word of a row 'CLIP-M'"):
        row_settings(tmp_path / "word.yaml", "1")


def test_tables_are_merged_and_nothing_is_changed_in_place() -> None:
    base = {"a": {"b": 1, "c": [1]}, "d": None}
    assert merged(base, {"a": {"c": [2]}}, {"d": {"e": 3}}) == {"a": {"b": 1, "c": [2]}, "d": {"e": 3}}
    assert base == {"a": {"b": 1, "c": [1]}, "d": None}
