"""LDS against its definition in loops, a closed form, and what must not change the value."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import latentlab
from analyses import spatial
from latentlab.errors import UserError


def lds(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("lds", z, **options)


def reference(z: np.ndarray, near: float, far: float, normalize: bool = True) -> np.ndarray:
    """The definition, pair by pair: mean over distances up to ``near`` minus mean over distances from ``far`` on, [n]."""
    z = z.astype(np.float64)
    if normalize:
        z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)
    values = []
    for x in z:
        tokens = {(i, j): x[:, i, j] / max(np.linalg.norm(x[:, i, j]), 1e-8) for i, j in np.ndindex(x.shape[1:])}
        alike, different = [], []
        for (a, b), u in tokens.items():
            for (c, d), v in tokens.items():
                distance = abs(a - c) + abs(b - d)
                if 0 < distance <= near:
                    alike.append(u @ v)
                if distance >= far:
                    different.append(u @ v)
        values.append(np.mean(alike) - np.mean(different))
    return np.array(values)


def smooth_latents(n: int = 5, shape: tuple[int, int, int] = (4, 6, 10), seed: int = 0) -> np.ndarray:
    """Latents whose tokens are the more alike the nearer they are, with channels of different offset and scale."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    blur = [0.7 ** np.abs(np.subtract.outer(np.arange(side), np.arange(side))) for side in (h, w)]
    z = np.einsum("gh,nchw,wv->ncgv", blur[0], rng.standard_normal((n, *shape)), blur[1])
    return z * np.linspace(0.5, 4, c)[:, None, None] + np.linspace(-2, 3, c)[:, None, None]


def turning_field() -> np.ndarray:
    """u(row, col) = (cos 0.2 row, sin 0.2 row) on 8 x 8: K = cos(0.2 (row - row'))."""
    angle = np.broadcast_to(0.2 * np.arange(8)[:, None], (8, 8))
    return np.stack([np.cos(angle), np.sin(angle)])[None]


def test_closed_form_on_a_turning_field() -> None:
    measured = lds(turning_field(), normalize=False)
    assert measured.value == pytest.approx(0.32145662, abs=5e-9)
    assert measured.companions["near similarity"].value == pytest.approx((1 + np.cos(0.2)) / 2, abs=1e-12)
    assert lds(turning_field().astype(np.float32), normalize=False).value == pytest.approx(0.32145662, abs=5e-7)


def test_similarity_at_every_distance_of_a_turning_field() -> None:
    """Row and column distance make up d; in 8 rows 8 - i pairs are i rows apart, and so for columns."""
    details = lds(turning_field(), normalize=False).details
    assert details["distance"].tolist() == list(range(1, 15))
    for distance, similarity in zip(details["distance"], details["similarity"], strict=True):
        splits = [(i, distance - i) for i in range(8) if 0 <= distance - i < 8]
        weights = [(8 - i) * (8 - j) * (1 + (i > 0)) * (1 + (j > 0)) for i, j in splits]
        assert similarity == pytest.approx(np.average([np.cos(0.2 * i) for i, _ in splits], weights=weights), abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("far", [2, 3, 6, 8, 14])
def test_code_variant_equals_the_loops(far: int, normalize: bool) -> None:
    """14 is the largest distance of the 6 x 10 grid: ``>`` for ``>=`` would leave nothing."""
    z = smooth_latents()
    measured = lds(z, far=far, normalize=normalize)
    assert measured.value == pytest.approx(reference(z, 1, far, normalize).mean(), abs=1e-12)
    assert f"{far} cells and more, 6x10 grid" in measured.variant


@pytest.mark.parametrize("shape", [(3, 6, 10), (3, 10, 6), (3, 7, 5), (2, 3, 4)])
def test_paper_variant_splits_at_half_the_height(shape: tuple[int, int, int]) -> None:
    """0 < d < h/2 against d >= h/2, with h even and odd, and never at half the width."""
    z, half = smooth_latents(4, shape), shape[1] / 2
    measured = lds(z, variant="paper")
    assert measured.value == pytest.approx(reference(z, np.ceil(half) - 1, half).mean(), abs=1e-12)
    assert (measured.details["near"], measured.details["far"]) == (int(np.ceil(half)) - 1, int(np.ceil(half)))


def test_variants_are_not_interchangeable() -> None:
    z = smooth_latents(40, (8, 16, 16))
    assert lds(z).value > 1.5 * lds(z, variant="paper").value > 0


@pytest.mark.parametrize("shape", [(4, 6, 10), (32, 16, 16)])
def test_float32_equals_float64(shape: tuple[int, int, int]) -> None:
    for shift in (0, 100):
        z = (smooth_latents(20, shape) + shift).astype(np.float32)
        for options in ({}, {"normalize": False}, {"variant": "paper"}):
            assert lds(z, **options).value == pytest.approx(lds(z.astype(np.float64), **options).value, abs=5e-7)


def test_batches_threads_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = smooth_latents(40)
    whole = lds(z)
    order = np.random.default_rng(0).permutation(40)
    assert lds(z[order]).value == pytest.approx(whole.value, abs=1e-13)
    monkeypatch.setattr(spatial, "_PIECE_BYTES", 2000)
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 7000)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        parted = lds(z)
    finally:
        torch.set_num_threads(before)
    assert parted.value == pytest.approx(whole.value, abs=1e-13)
    np.testing.assert_allclose(parted.replicates, whole.replicates, atol=1e-13)


def test_a_store_gives_the_same(tmp_path: Path) -> None:
    z = smooth_latents(11).astype(np.float32)
    for i, part in enumerate((z[:6], z[6:])):
        save_file({"latents": part}, tmp_path / f"latents_rank00_shard{i:03d}.safetensors")
    stored = latentlab.measure("lds", store=latentlab.LatentStore(tmp_path))
    assert stored.value == lds(z).value and stored.interval == lds(z).interval


def test_invariances() -> None:
    """Shift and scale of the channels when normalised; a rotation of the tokens' space when raw; mirrored, transposed grids."""
    z = smooth_latents()
    value, raw = lds(z).value, lds(z, normalize=False).value
    scale = np.array([1, 20, 0.3, 5])[:, None, None]
    assert lds(z * scale + scale).value == pytest.approx(value, abs=1e-10)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    assert lds(7 * np.einsum("dc,nchw->ndhw", rotation, z), normalize=False).value == pytest.approx(raw, abs=1e-12)
    for moved in (z[:, :, ::-1], z[:, :, :, ::-1], z.swapaxes(2, 3)):
        assert lds(moved.copy()).value == pytest.approx(value, abs=1e-12)


def test_a_shared_offset_inflates_raw_similarities() -> None:
    z = smooth_latents()
    near = lds(z + 50, normalize=False).companions["near similarity"].value
    assert near > 0.95 > lds(z).companions["near similarity"].value


def test_tokens_shorter_than_the_epsilon_fade_out() -> None:
    """u = x / max(|x|, 1e-8): a length of 1e-10 leaves a hundredth of u, and 1e-4 of K; one of 1e-7 changes nothing."""
    u = turning_field()
    value = lds(u, normalize=False).value
    assert lds(1e-7 * u, normalize=False).value == pytest.approx(value, rel=1e-12)
    assert lds(1e-10 * u, normalize=False).value == pytest.approx(1e-4 * value, rel=1e-12)


def test_independent_tokens_measure_nothing() -> None:
    z = np.random.default_rng(0).standard_normal((300, 8, 8, 8)).astype(np.float32)
    measured = lds(z)
    assert measured.interval[0] < 0 < measured.interval[1] and abs(measured.value) < 0.01


def test_interval_is_the_bootstrap_over_images_and_replicates_are_paired() -> None:
    z = smooth_latents(300, (4, 6, 6))
    measured = lds(z, normalize=False)
    per_image = reference(z, 1, 6, normalize=False)
    half = 1.96 * per_image.std() / np.sqrt(300)
    low, high = measured.interval
    assert high - low == pytest.approx(2 * half, rel=0.15) and low < measured.value < high
    assert measured.interval == pytest.approx(np.percentile(measured.replicates, (2.5, 97.5)))
    rough = lds(z + 0.3 * np.random.default_rng(1).standard_normal(z.shape), normalize=False)
    difference = measured.replicates - rough.replicates
    assert difference.std() < 0.5 * np.hypot(measured.replicates.std(), rough.replicates.std())
    assert lds(z, normalize=False, seed=1).interval != measured.interval
    band = [measured.details[key] for key in ("similarity_low", "similarity", "similarity_high")]
    assert (np.diff(band, axis=0) > 0).all()


def test_tokens_need_a_layout() -> None:
    z = smooth_latents()
    tokens = z.reshape(5, 4, 60).transpose(0, 2, 1)
    laid_out = lds(tokens, grid=(6, 10))
    assert laid_out.value == pytest.approx(lds(z).value, abs=1e-12) and laid_out.parameters["grid"] == (6, 10)
    assert lds(tokens, grid=(10, 6)).value != pytest.approx(laid_out.value, abs=1e-3)
    with pytest.raises(UserError, match="grid"):
        lds(tokens)
    with pytest.raises(UserError, match="6x11 does not hold 60 tokens"):
        lds(tokens, grid=(6, 11))


def test_small_grids_are_named() -> None:
    assert "other 6x10 grids" in lds(smooth_latents()).warnings[0]
    assert lds(smooth_latents(2, (4, 16, 16))).warnings == ()


def test_one_image_has_no_interval() -> None:
    measured = lds(smooth_latents(1))
    assert measured.interval is None and measured.replicates is None and "similarity_low" not in measured.details
    assert any("one image" in warning for warning in measured.warnings)


def test_collapsed_latents_measure_nothing_and_say_so() -> None:
    measured = lds(np.full((3, 2, 6, 6), 1.7, dtype=np.float32))
    assert measured.value == 0 and any("do not vary" in warning for warning in measured.warnings)
    assert lds(np.full((3, 2, 6, 6), 1.7), normalize=False).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 6, 10), {"far": 15}, "far=15 does not fit a 6x10 grid: no two cells are more than 14 apart"),
        ((4, 3, 3), {}, "far=6 does not fit a 3x3 grid: no two cells are more than 4 apart"),
        ((4, 6, 10), {"far": 1}, "far must be at least 2 cells, got 1"),
        ((4, 2, 8), {"variant": "paper"}, "2x8 grid without near or without far tokens"),
        ((4, 5, 1), {"variant": "paper", "far": 2}, None),
        ((4, 6, 10), {"variant": "codes"}, "unknown variant 'codes'. Did you mean code?"),
        ((4, 6, 10), {"d_max": 4}, "unknown parameter"),
        ((4, 6, 10), {"grid": (10, 6)}, "grid is for 1-D tokens"),
    ],
)
def test_wrong_options_are_refused(shape: tuple[int, int, int], options: dict, message: str | None) -> None:
    z = smooth_latents(3, shape)
    if message is None:
        assert np.isfinite(lds(z, **options).value)
        return
    with pytest.raises(UserError, match=message):
        lds(z, **options)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_latents_are_refused(bad: float, normalize: bool) -> None:
    z = smooth_latents()
    z[3, 1, 0, 0] = bad
    with pytest.raises(UserError, match="image 3"):
        lds(z, normalize=normalize)
