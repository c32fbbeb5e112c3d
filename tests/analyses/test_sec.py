"""SEC against scipy's DCT, exact single-mode cases, and what must not change the value."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.fft import dctn, idctn

import latentlab
from analyses import spectrum
from latentlab import latents as latents_module
from latentlab.errors import UserError


def sec(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("sec", z, **options)


def reference(z: np.ndarray, rho: float, normalize: bool = True, euclidean: bool = False) -> float:
    """The definition, with scipy."""
    if normalize:
        z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)
    energy = (dctn(z, axes=(2, 3), norm="ortho") ** 2).mean((0, 1))
    h, w = energy.shape
    u, v = np.arange(h)[:, None], np.arange(w)
    if euclidean:
        above = np.sqrt(u**2 + v**2) > rho * np.sqrt((h - 1) ** 2 + (w - 1) ** 2)
    else:
        above = u + v > rho * (h + w - 2)
    return float(energy[above].sum() / energy.sum())


def smooth_latents(n: int = 9, shape: tuple[int, int, int] = (4, 6, 10), seed: int = 0) -> np.ndarray:
    """Latents with falling spectra, and channels of different offset and scale."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    falling = 1 / (1 + np.add.outer(np.arange(h), np.arange(w)))
    z = idctn(rng.standard_normal((n, *shape)) * falling, axes=(2, 3), norm="ortho")
    return z * np.logspace(-1, 1, c)[:, None, None] + np.linspace(-2, 3, c)[:, None, None]


def single_modes() -> np.ndarray:
    """Four 16 x 16 channels, each one DCT mode: (0,0) amplitude 3, (7,8) 1, (8,8) 1, (15,15) 2."""
    coefficients = np.zeros((1, 4, 16, 16))
    for channel, (u, v, amplitude) in enumerate([(0, 0, 3), (7, 8, 1), (8, 8, 1), (15, 15, 2)]):
        coefficients[0, channel, u, v] = amplitude
    return idctn(coefficients, axes=(2, 3), norm="ortho")


def test_single_modes_are_exact() -> None:
    """u + v = tau = 15 is not above the threshold."""
    measured = sec(single_modes(), normalize=False)
    assert measured.value == pytest.approx(5 / 15, abs=1e-12)
    assert measured.companions["SEC@0.25"].value == pytest.approx(6 / 15, abs=1e-12)
    assert measured.details["threshold"] == 15


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["manhattan", "euclidean"])
def test_equals_scipy(rho: float, normalize: bool, distance: str) -> None:
    z = smooth_latents()
    measured = sec(z, rho=rho, normalize=normalize, distance=distance)
    assert measured.value == pytest.approx(reference(z, rho, normalize, distance == "euclidean"), abs=1e-12)


def test_float32_equals_float64() -> None:
    z = smooth_latents()
    for normalize in (True, False):
        quick = sec(z.astype(np.float32), normalize=normalize).value
        assert quick == pytest.approx(sec(z, normalize=normalize).value, rel=1e-6)


def test_normalisation_uses_ddof_one() -> None:
    """SEC itself is a ratio and cannot tell; the energy of a standardised channel is n s - 1, here 2 * 4 - 1."""
    z = smooth_latents(n=2, shape=(3, 2, 2))
    found = spectrum.measure_spectrum(
        latentlab.ArrayLatents(z), np.zeros((1, 2, 2), dtype=bool), normalize=True, seed=0
    )
    assert found.totals.sum() == pytest.approx(3 * (2 * 4 - 1), rel=1e-12)


def test_white_noise_has_the_share_of_frequencies() -> None:
    z = np.random.default_rng(0).standard_normal((200, 4, 16, 16)).astype(np.float32)
    measured = sec(z)
    assert measured.value == pytest.approx(0.46875, abs=3e-3)
    assert measured.companions["SEC@0.25"].value == pytest.approx(0.859375, abs=3e-3)
    low, high = measured.interval
    assert low < measured.value < high


def test_scale_does_not_matter_and_an_offset_only_when_raw() -> None:
    z = np.random.default_rng(0).standard_normal((100, 4, 16, 16))
    value = sec(z).value
    assert sec(1e-3 * z + 5).value == pytest.approx(value, rel=1e-9)
    assert sec(z + 5, normalize=False).value == pytest.approx(0.018, abs=1e-3)


def test_a_large_offset_costs_no_digits() -> None:
    z = smooth_latents().astype(np.float32)
    shifted = (z + 1000).astype(np.float32)
    exact = reference((shifted.astype(np.float64)), 0.5)  # of the rounded numbers
    assert sec(shifted).value == pytest.approx(exact, rel=1e-4)


def test_energy_map_is_a_distribution() -> None:
    z = smooth_latents()
    energy = sec(z, normalize=False).details["energy"]
    expected = (dctn(z, axes=(2, 3), norm="ortho") ** 2).mean((0, 1))
    np.testing.assert_allclose(energy, expected / expected.sum(), atol=1e-12)


def test_batches_threads_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = smooth_latents(n=40)
    whole = sec(z)
    assert sec(z[::-1].copy()).value == pytest.approx(whole.value, rel=1e-12)
    monkeypatch.setattr(spectrum, "_PIECE_BYTES", 1)
    monkeypatch.setattr(latents_module, "BATCH_BYTES", 7000)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parted = sec(z)
    finally:
        torch.set_num_threads(before)
    assert parted.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(parted.interval, whole.interval, rtol=1e-12)
    np.testing.assert_allclose(parted.details["energy"], whole.details["energy"], rtol=1e-10)


def test_a_store_gives_the_same(tmp_path: Path) -> None:
    z = smooth_latents(n=11).astype(np.float32)
    for i, part in enumerate((z[:6], z[6:])):
        save_file({"latents": part}, tmp_path / f"latents_rank00_shard{i:03d}.safetensors")
    stored = latentlab.measure("sec", store=latentlab.LatentStore(tmp_path))
    assert stored.value == sec(z).value and stored.interval == sec(z).interval


def test_interval_is_the_bootstrap_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Width against the ratio's standard error; with far fewer groups than images it stays the same."""
    z = smooth_latents(n=400, shape=(2, 4, 4))
    energy = dctn(z, axes=(2, 3), norm="ortho") ** 2
    total = energy.sum((1, 2, 3))
    above = energy[:, :, np.add.outer(np.arange(4), np.arange(4)) > 3].sum((1, 2))
    error = np.std(above - above.sum() / total.sum() * total) / total.mean() / np.sqrt(400)
    for groups in (512, 100):
        monkeypatch.setattr("analyses.intervals.GROUPS", groups)
        low, high = sec(z, normalize=False).interval
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert sec(z, normalize=False).interval == (low, high)


def test_replicates_are_paired() -> None:
    z = smooth_latents(n=300, shape=(2, 4, 4))
    measured = sec(z, normalize=False)
    assert measured.interval == pytest.approx(np.percentile(measured.replicates, (2.5, 97.5)))
    other = sec(z + 0.1 * np.random.default_rng(1).standard_normal(z.shape), normalize=False)
    difference = measured.replicates - other.replicates
    assert difference.std() < 0.5 * np.hypot(measured.replicates.std(), other.replicates.std())
    np.testing.assert_allclose(sec(z, normalize=False, thresholds=()).replicates, measured.replicates, rtol=1e-12)


def test_several_thresholds() -> None:
    z = smooth_latents()
    measured = sec(z, rho=0.4, thresholds=(0.1, 0.4, 0.9))
    assert list(measured.companions) == ["SEC@0.1", "SEC@0.4", "SEC@0.9"]
    for rho, estimate in zip((0.1, 0.4, 0.9), measured.companions.values(), strict=True):
        assert estimate.value == pytest.approx(reference(z, rho), abs=1e-12)
        assert estimate.interval[0] < estimate.value < estimate.interval[1]
    assert measured.companions["SEC@0.4"] == (measured.value, measured.interval)


@pytest.mark.parametrize("distance", ["manhattan", "euclidean"])
def test_radial_spectrum_sums_the_energy_map_over_rings(distance: str) -> None:
    details = sec(smooth_latents(), distance=distance).details
    energy, frequency = details["energy"], details["frequency"]
    shares, white = np.zeros(len(frequency)), np.zeros(len(frequency))
    for (u, v), share in np.ndenumerate(energy):
        ring = u + v if distance == "manhattan" else int(np.sqrt(u * u + v * v))
        shares[ring] += share
        white[ring] += 1 / 60
    np.testing.assert_allclose(details["radial_energy"], shares, atol=1e-14)
    np.testing.assert_allclose(details["radial_white"], white, atol=1e-14)
    assert frequency[-1] == (14 if distance == "manhattan" else 10)  # sqrt(5^2 + 9^2) = 10.3
    assert details["radial_energy"].sum() == pytest.approx(1)


def test_constant_channels_do_not_count() -> None:
    z = smooth_latents().astype(np.float32)
    with_constant = np.concatenate([z, np.full_like(z[:, :1], 3.3)], axis=1)
    assert sec(with_constant).value == pytest.approx(sec(z).value, rel=1e-6)


def test_no_energy_gives_zero_and_says_so() -> None:
    for normalize in (True, False):
        measured = sec(np.zeros((3, 2, 4, 4)), normalize=normalize)
        assert measured.value == 0 and measured.interval is None and "no energy" in measured.warnings[0]
    assert sec(np.full((3, 2, 4, 4), 1.7)).value == 0


def test_one_image_has_no_interval() -> None:
    measured = sec(smooth_latents(n=1))
    assert measured.interval is None and "one image" in measured.warnings[0]


def test_dct_matrix_is_orthonormal_and_scipys() -> None:
    matrix = spectrum.dct_matrix(7)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(7, dtype=torch.float64))
    x = np.random.default_rng(0).standard_normal(7)
    np.testing.assert_allclose(matrix.numpy() @ x, dctn(x, norm="ortho"), atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 1.2}, r"rho must lie in \[0, 1\], got 1.2"),
        ({"rho": -0.1}, "rho must lie"),
        ({"rho": float("nan")}, "rho must lie"),
        ({"thresholds": (0.5, 1.5)}, r"thresholds must lie in \[0, 1\], got 1.5"),
        ({"distance": "chebyshev"}, "unknown distance"),
        ({"threshold": 0.5}, "unknown parameter"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sec(smooth_latents(), **options)


def test_tokens_need_a_layout() -> None:
    z = smooth_latents()
    tokens = z.reshape(9, 4, 60).transpose(0, 2, 1)
    assert sec(tokens, grid=(6, 10)).value == pytest.approx(sec(z).value, abs=1e-13)
    with pytest.raises(UserError, match="grid"):
        sec(tokens)
    with pytest.raises(UserError, match="5x10 does not hold 60 tokens"):
        sec(tokens, grid=(5, 10))
    with pytest.raises(UserError, match="grid is for 1-D tokens"):
        sec(z, grid=(10, 6))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_latents_are_refused(bad: float) -> None:
    z = smooth_latents()
    z[3, 1, 0, 0] = bad
    with pytest.raises(UserError, match="image 3"):
        sec(z)
