"""The published IBQ layout against outputs of the authors' code (seeded random weights at reduced width)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab import UserError
from latentlab.tokenizers import DiscreteTokenizer, load_tokenizer

from .training_pass import training_pass

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "ibq"
FILE = GOLDEN / "imagenet256_16384.ckpt"
NARROW = {"ch": 32, "n_embed": 1024}

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the IBQ reference files are not here")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def load(ema: bool) -> DiscreteTokenizer:
    tokenizer = load_tokenizer("ibq", weights=FILE, architecture=NARROW, ema=ema)
    assert isinstance(tokenizer, DiscreteTokenizer)
    return tokenizer


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_reproduces_upstream(golden: dict[str, torch.Tensor], which: str) -> None:
    tokenizer = load(ema=which == "ema")
    expected = {name.removeprefix(f"{which}_"): value for name, value in golden.items() if name.startswith(which)}
    features = tokenizer.features(golden["x"])
    torch.testing.assert_close(features, expected["z_prequant"], atol=1e-4, rtol=0)
    indices = tokenizer.indices(golden["x"])
    clear = expected["margin"] > 1e-3
    assert clear.all() and torch.equal(indices[clear], expected["indices"][clear].long())
    torch.testing.assert_close(tokenizer.codes(indices), expected["codes"], atol=0, rtol=0)
    latents = tokenizer.encode(golden["x"])
    torch.testing.assert_close(latents, expected["quant_ste"], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        tokenizer.decode_indices(indices), expected["recon_from_codes"].clamp(-1, 1), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(tokenizer.decode(latents), expected["recon_upstream"].clamp(-1, 1), atol=1e-3, rtol=0)


def test_training_pass_equals_upstreams_straight_through_value(golden: dict[str, torch.Tensor]) -> None:
    tokenizer = load(ema=True)
    output = training_pass(tokenizer, golden["x"])
    torch.testing.assert_close(output.latents, golden["ema_quant_ste"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.reconstruction, golden["ema_recon_upstream"], atol=1e-3, rtol=0)


def test_averaged_weights_are_the_default_and_the_two_never_share_a_name() -> None:
    default = load_tokenizer("ibq", weights=FILE, architecture=NARROW)
    averaged, raw = load(ema=True), load_tokenizer("ibq", weights=FILE, architecture=NARROW | {"use_ema": False})
    assert torch.equal(default.codebook, averaged.codebook)
    assert not torch.equal(default.codebook, raw.codebook)
    assert (averaged.spec.release, raw.spec.release) == ("custom", "custom-raw")
    said = load_tokenizer("ibq", weights=FILE, architecture=NARROW, release="imagenet256", ema=False)
    assert said.spec.release == "imagenet256-raw"


def test_a_file_without_averages_is_recorded_as_raw(tmp_path: Path) -> None:
    state = torch.load(FILE, weights_only=True)["state_dict"]
    raw = {key: tensor for key, tensor in state.items() if not key.startswith("model_ema.")}
    torch.save({"state_dict": raw}, tmp_path / "imagenet256_16384.ckpt")
    tokenizer = load_tokenizer("ibq", weights=tmp_path, architecture=NARROW)
    assert tokenizer.spec.release == "custom-raw" and torch.equal(tokenizer.codebook, load(ema=False).codebook)


def test_fields_of_the_published_configuration_are_taken_in_its_section_and_outside() -> None:
    """``dropout`` has no effect on a trained tokenizer."""
    section = {"ddconfig": {"ch": 32, "dropout": 0.0}, "n_embed": 1024, "dropout": 0.1}
    assert torch.equal(load_tokenizer("ibq", weights=FILE, architecture=section).codebook, load(ema=True).codebook)
    with pytest.raises(UserError, match="'ddconfig' must be a table of fields, got 3"):
        load_tokenizer("ibq", weights=FILE, architecture={"ddconfig": 3})


def test_batches_do_not_matter(golden: dict[str, torch.Tensor]) -> None:
    tokenizer = load(ema=True)
    alone = torch.cat([tokenizer.encode(image[None]) for image in golden["x"]])
    torch.testing.assert_close(alone, tokenizer.encode(golden["x"]), atol=1e-5, rtol=0)


def test_another_width_is_one_error_with_all_misfits() -> None:
    with pytest.raises(
        UserError, match=r"16384.ckpt for 'ibq' does not fit.* 1 of another shape \(model_ema\.quantize"
    ) as caught:
        load_tokenizer("ibq", weights=FILE, architecture={"ch": 32})
    assert "[1024, 256] instead of [16384, 256]" in str(caught.value)
    with pytest.raises(UserError, match=r"\d\d\d of another shape \(.* and \d\d\d more\)") as caught:
        load_tokenizer("ibq", weights=FILE, architecture={"ch": 64, "n_embed": 1024})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
