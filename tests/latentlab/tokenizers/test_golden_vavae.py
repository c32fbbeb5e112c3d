"""The published VA-VAE layout against outputs of the authors' code (seeded random weights at reduced width)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab import UserError
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.autoencoder import KLAutoencoder

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "vavae_f16d32"
FILE = GOLDEN / "vavae-imagenet256-f16d32-dinov2.pt"

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="the VA-VAE reference files are not here")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def load(file: Path = FILE) -> KLAutoencoder:
    tokenizer = load_tokenizer("va-vae", weights=file, architecture={"ch": 32})
    assert isinstance(tokenizer, KLAutoencoder)
    return tokenizer


def test_reproduces_upstream(golden: dict[str, torch.Tensor]) -> None:
    tokenizer = load()
    with torch.no_grad():
        posterior = tokenizer.posterior(golden["x"])
    torch.testing.assert_close(posterior.mean, golden["mean"], atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.logvar, golden["logvar"], atol=1e-4, rtol=0)
    sample = posterior.mean + posterior.std * golden["eps"]
    torch.testing.assert_close(sample, golden["sample"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode(posterior.mean), golden["recon_mode"].clamp(-1, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(tokenizer.decode(sample), golden["recon_sample"].clamp(-1, 1), atol=1e-3, rtol=0)


def test_latents_are_the_mean_and_normalise_with_the_published_statistics(golden: dict[str, torch.Tensor]) -> None:
    tokenizer = load()
    latents = tokenizer.encode(golden["x"])
    torch.testing.assert_close(latents, golden["mean"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.normalize(latents), golden["normalized_mean"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.denormalize(tokenizer.normalize(latents)), latents)


def test_statistics_come_from_the_file_beside_the_weights_else_from_the_code(tmp_path: Path) -> None:
    copy = Path(shutil.copy(FILE, tmp_path))
    shipped = load(copy).spec
    assert torch.tensor(shipped.shift).allclose(torch.tensor(load().spec.shift), rtol=1e-6)
    assert torch.tensor(shipped.scale).allclose(torch.tensor(load().spec.scale), rtol=1e-6)
    torch.save(
        {"mean": torch.full((1, 32, 1, 1), 3.0), "std": torch.full((1, 32, 1, 1), 4.0)}, tmp_path / "latents_stats.pt"
    )
    other = load(copy).spec
    assert (other.shift, other.scale) == ((3.0,) * 32, (0.25,) * 32)
    torch.save({"average": torch.zeros(32)}, tmp_path / "latents_stats.pt")
    with pytest.raises(UserError, match=r"latents_stats.pt must hold 'mean' and 'std', it holds average"):
        load(copy)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(32), torch.zeros(32), "latents_stats.pt is damaged: .* every 'std' positive"),
        (torch.full((32,), torch.nan), torch.ones(32), "latents_stats.pt is damaged: every 'mean' must be finite"),
        (torch.zeros(16), torch.ones(16), "latents_stats.pt has statistics of 16 and 16 channels, but latents have 32"),
    ],
)
def test_statistics_that_cannot_be_are_refused_by_name(
    mean: torch.Tensor, std: torch.Tensor, message: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(FILE, tmp_path))
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    with pytest.raises(UserError, match=message):
        load(copy)


def test_loads_without_the_wrapper_and_without_training_keys(golden: dict[str, torch.Tensor], tmp_path: Path) -> None:
    state = torch.load(FILE, weights_only=True)["state_dict"]
    kept = {key: value for key, value in state.items() if key.startswith(("encoder", "decoder", "quant", "post"))}
    assert len(kept) == len(state) - 8 == 342
    torch.save(kept, tmp_path / "flat.pt")
    torch.testing.assert_close(
        load(tmp_path / "flat.pt").encode(golden["x"]), load().encode(golden["x"]), atol=0, rtol=0
    )
