"""What must not change a measurement: batch size, order of the images, precision, seed, where the latents lie.

One table over all measurements; what belongs to a single one is tested beside it. Two processes instead of one:
`tests/latentlab/test_ranks.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentlab
from analyses.intervals import SHARE, percentile_interval, share_interval
from latentlab import TokenizerSpec
from latentlab import latents as latents_module
from latentlab.registry import BUILTIN, card_of, find_measurement, keyword_parameters, needs_latents
from latentlab.store import StoreWriter

N, SHAPE = 60, (4, 8, 8)
RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.arange(N) % 3)
CODEBOOK = RNG.normal(size=(11, 4))
CODES = RNG.integers(0, 11, size=(N, 8, 8))
LATENTS = (RNG.normal(size=(N, *SHAPE)) + LABELS[:, None, None, None] + np.linspace(0, 2, 8)).astype(np.float32)
MASKS = RNG.random((N, 8, 8)) < 0.5
IMAGES = np.tanh(RNG.normal(size=(N, 3, 32, 32))).astype(np.float32)

OPTIONS: dict[str, dict[str, Any]] = {
    "gmm": {"components": (1, 2), "dims": 3},
    "uniformity": {"perplexity": 10, "iterations": 250, "repeats": 1},
    "srss": {"d_neg": 4},
    "codebook": {"codebook": torch.from_numpy(CODEBOOK)},
    "sensitivity": {"perceptual": None, "extractor": None},
    "ifid": {"extractor": lambda x: x.flatten(1)[:, :7], "limit": None},
    "reconstruction": {"extractor": lambda x: x.flatten(1)[:, :7], "limit": None},
}

PRECISE = {
    # Share by which float32 latents may move a value; float64 sums keep most measurements to rounding.
    "viv": 2e-5, "lnc": 1e-12, "linear_probe": 1e-12, "lds": 2e-6, "cds": 2e-6, "srss": 2e-6, "rmsc": 2e-6, "sec": 1e-6,
    "gmm": 1e-12, "intrinsic_dimension": 1e-5, "codebook": 1e-12, "latent_statistics": 1e-6, "ifid": 1e-4,
    "reconstruction": 1e-4, "sensitivity": 1e-4, "equivariance": 1e-5,
}  # fmt: skip

SAMPLED = {"linear_probe", "gmm", "uniformity", "intrinsic_dimension"}
"""Which images are drawn (for testing, as points) goes by position: another order draws others."""

BY_POSITION = {"sensitivity"}
"""The noise of an image goes by its position."""

MEASURED = [name for name in BUILTIN if not card_of(name).on_request]


def encode(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images[:, :, ::4, ::4], images.mean(1, keepdim=True)[:, :, ::4, ::4] ** 2], dim=1)


def decode(latents: torch.Tensor) -> torch.Tensor:
    return torch.tanh(latents[:, :3]).repeat_interleave(4, 2).repeat_interleave(4, 3).float()


def measure(
    name: str, order: np.ndarray = np.arange(N), dtype: type = np.float32, **more: Any
) -> latentlab.Measurement:
    """Measure ``name`` with everything it can ask for, images in ``order``."""
    function = find_measurement(name)
    known = keyword_parameters(function)
    supplied = {"images": IMAGES[order], "encode": encode, "decode": decode}
    arguments = {key: value for key, value in supplied.items() if key in known} | OPTIONS.get(name, {}) | more
    if needs_latents(function):
        codes = CODES[order] if "codes" in card_of(name).needs else None
        arguments |= {
            "latents": LATENTS[order].astype(dtype),
            "labels": LABELS[order],
            "masks": MASKS[order],
            "codes": codes,
        }
    return latentlab.measure(name, **arguments)


@pytest.mark.parametrize("name", MEASURED)
def test_batch_size_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(name)
    for module in (latents_module, __import__("latentlab.pixels", fromlist=["x"])):
        monkeypatch.setattr(module, "BATCH_BYTES", 7 * 4 * 256)
    parted = measure(name)
    assert parted.value == pytest.approx(whole.value, rel=1e-6, abs=1e-9)
    if whole.interval is not None:
        assert parted.interval == pytest.approx(whole.interval, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in SAMPLED | BY_POSITION])
def test_order_of_the_images_changes_nothing(name: str) -> None:
    order = np.random.default_rng(1).permutation(N)
    assert measure(name, order).value == pytest.approx(measure(name).value, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in PRECISE if name in MEASURED and name != "equivariance"])
def test_float64_latents_give_the_same_to_the_stated_tolerance(name: str) -> None:
    assert measure(name, dtype=np.float64).value == pytest.approx(measure(name).value, rel=PRECISE[name])


@pytest.mark.parametrize("name", MEASURED)
def test_same_seed_same_result_and_another_seed_moves_only_the_interval(name: str) -> None:
    first, again, other = measure(name, seed=0), measure(name, seed=0), measure(name, seed=1)
    assert first.to_json() == again.to_json()
    if name not in SAMPLED | BY_POSITION:
        assert other.value == pytest.approx(first.value, rel=1e-12)
        if first.replicates is not None:
            assert not np.array_equal(other.replicates, first.replicates)


@pytest.mark.parametrize("name", MEASURED)
def test_interval_is_that_of_the_replicates_and_holds_the_value(name: str) -> None:
    found = measure(name)
    if found.replicates is None:
        assert found.interval is None and found.warnings
        return
    assert found.replicates.shape == (1000,)
    if name != "gmm":  # whole numbers of components
        units, within = found.units or found.n, SHARE if found.unit == "fraction" else (-np.inf, np.inf)
        of_shares = name in ("linear_probe", "lnc")
        expected = (
            share_interval(found.replicates, units)
            if of_shares
            else percentile_interval(found.replicates, units, within)
        )
        np.testing.assert_allclose(found.interval, expected, rtol=1e-9)
    assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize("name", [name for name in MEASURED if needs_latents(find_measurement(name))])
def test_a_store_gives_what_arrays_give(name: str, tmp_path: Path) -> None:
    spec = TokenizerSpec("toy", "test", "continuous", "grid", channels=4)
    writer = StoreWriter(tmp_path, request={}, spec=spec)
    codes = torch.from_numpy(CODES) if name == "codebook" else None
    writer.append(torch.from_numpy(LATENTS), LABELS, masks=torch.from_numpy(MASKS), codes=codes)
    function = find_measurement(name)
    known = keyword_parameters(function)
    supplied = {"images": IMAGES, "encode": encode, "decode": decode}
    arguments = {key: value for key, value in supplied.items() if key in known} | OPTIONS.get(name, {})
    stored = latentlab.measure(name, store=writer.finish(), **arguments)
    assert stored.value == pytest.approx(measure(name).value, rel=1e-6)
