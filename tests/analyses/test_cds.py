"""CDS against its definition in loops, closed forms, and what must not change the value."""

import numpy as np
import pytest

import latentlab
from latentlab.errors import UserError


def cds(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("cds", z, **options)


def reference(z: np.ndarray, d_max: int = 8, normalize: bool = True) -> np.ndarray:
    """The definition, pair by pair, [n]."""
    z = z.astype(np.float64)
    if normalize:
        z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)
    values = []
    for x in z:
        tokens = {(i, j): x[:, i, j] / max(np.linalg.norm(x[:, i, j]), 1e-8) for i, j in np.ndindex(x.shape[1:])}
        at: dict[int, list[float]] = {}
        for (a, b), u in tokens.items():
            for (c, d), v in tokens.items():
                at.setdefault(abs(a - c) + abs(b - d), []).append(u @ v)
        delta = [d for d in range(1, d_max + 1) if d in at]
        values.append(-np.polyfit(delta, [np.mean(at[d]) for d in delta], 1)[0])
    return np.array(values)


def smooth_latents(n: int = 5, shape: tuple[int, int, int] = (4, 6, 10), seed: int = 0) -> np.ndarray:
    """Latents whose tokens are the more alike the nearer they are, with channels of different offset and scale."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    blur = [0.7 ** np.abs(np.subtract.outer(np.arange(side), np.arange(side))) for side in (h, w)]
    z = np.einsum("gh,nchw,wv->ncgv", blur[0], rng.standard_normal((n, *shape)), blur[1])
    return z * np.linspace(0.5, 4, c)[:, None, None] + np.linspace(-2, 3, c)[:, None, None]


def turning_field(dtype: type = np.float64) -> np.ndarray:
    """u(row, col) = (cos 0.2 row, sin 0.2 row) on 8 x 8: K = cos(0.2 (row - row'))."""
    angle = np.broadcast_to(0.2 * np.arange(8)[:, None], (8, 8))
    return np.stack([np.cos(angle), np.sin(angle)])[None].astype(dtype)


def test_closed_form_on_a_turning_field() -> None:
    assert cds(turning_field(), normalize=False).value == pytest.approx(0.04924541, abs=5e-9)
    assert cds(turning_field(np.float32), normalize=False).value == pytest.approx(0.04924541, abs=5e-7)


def test_a_linear_fall_is_its_slope() -> None:
    """On a strip of cells with K = 1 - 0.1 d, made from a factor of that matrix, the slope is 0.1 and the level 1."""
    similarity = 1 - 0.1 * np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    z = np.linalg.cholesky(similarity).T.reshape(1, 10, 1, 10)
    measured = cds(z, normalize=False)
    assert measured.value == pytest.approx(0.1, abs=1e-12)
    assert measured.details["intercept"] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("d_max", [2, 4, 8, 14])
def test_equals_the_loops(d_max: int, normalize: bool) -> None:
    z = smooth_latents()
    measured = cds(z, d_max=d_max, normalize=normalize)
    assert measured.value == pytest.approx(reference(z, d_max, normalize).mean(), abs=1e-12)
    assert measured.details["d_max"] == d_max and len(measured.details["distance"]) == 14


def test_distances_that_a_grid_does_not_have_are_skipped() -> None:
    z = smooth_latents(shape=(4, 3, 4))
    measured = cds(z)
    assert measured.value == pytest.approx(reference(z).mean(), abs=1e-12) == cds(z, d_max=5).value
    assert measured.warnings[-1] == "the grid has no distances above 5: the line is fitted to 1 to 5, not to 8"
    assert measured.parameters["d_max"] == 8 and measured.details["d_max"] == 5


@pytest.mark.parametrize("shape", [(4, 6, 10), (32, 16, 16)])
def test_float32_equals_float64(shape: tuple[int, int, int]) -> None:
    z = smooth_latents(20, shape).astype(np.float32)
    for options in ({}, {"normalize": False}, {"d_max": 14}):
        assert cds(z, **options).value == pytest.approx(cds(z.astype(np.float64), **options).value, abs=5e-7)


def test_batches_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z = smooth_latents(40)
    whole = cds(z)
    assert cds(z[::-1].copy()).value == pytest.approx(whole.value, abs=1e-13)
    monkeypatch.setattr("analyses.spatial._PIECE_BYTES", 2000)
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 7000)
    assert cds(z).value == pytest.approx(whole.value, abs=1e-13)
    assert cds(z).interval == pytest.approx(whole.interval, abs=1e-13)


def test_invariances() -> None:
    z = smooth_latents()
    value = cds(z).value
    scale = np.array([1, 20, 0.3, 5])[:, None, None]
    for same in (z * scale + scale, z[:, :, ::-1].copy(), z.swapaxes(2, 3).copy()):
        assert cds(same).value == pytest.approx(value, abs=1e-10)


def test_interval_is_the_bootstrap_over_images_and_replicates_are_paired() -> None:
    z = smooth_latents(300, (4, 6, 6))
    measured = cds(z, normalize=False)
    half = 1.96 * reference(z, normalize=False).std() / np.sqrt(300)
    assert np.diff(measured.interval) == pytest.approx(2 * half, rel=0.15)
    assert measured.interval == pytest.approx(np.percentile(measured.replicates, (2.5, 97.5)))
    rough = cds(z + 0.3 * np.random.default_rng(1).standard_normal(z.shape), normalize=False)
    difference = measured.replicates - rough.replicates
    assert difference.std() < 0.5 * np.hypot(measured.replicates.std(), rough.replicates.std())


def test_independent_tokens_measure_nothing() -> None:
    z = np.random.default_rng(0).standard_normal((300, 8, 8, 8)).astype(np.float32)
    measured = cds(z)
    assert measured.interval[0] < 0 < measured.interval[1] and abs(measured.value) < 1e-3


def test_tokens_need_a_layout() -> None:
    z = smooth_latents()
    tokens = z.reshape(5, 4, 60).transpose(0, 2, 1)
    assert cds(tokens, grid=(6, 10)).value == pytest.approx(cds(z).value, abs=1e-12)
    with pytest.raises(UserError, match="grid"):
        cds(tokens)


def test_one_image_has_no_interval() -> None:
    measured = cds(smooth_latents(1))
    assert measured.interval is None and measured.replicates is None
    assert any("one image" in warning for warning in measured.warnings)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 6, 10), {"d_max": 1}, "d_max must be at least 2 cells, or there is no line to fit: got 1"),
        ((4, 1, 2), {}, "cds needs two distances for a slope, and a 1x2 grid has 1"),
        ((4, 6, 10), {"far": 4}, "unknown parameter"),
    ],
)
def test_wrong_options_are_refused(shape: tuple[int, int, int], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cds(smooth_latents(3, shape), **options)


def test_non_finite_latents_are_refused() -> None:
    z = smooth_latents()
    z[3, 1, 0, 0] = np.nan
    with pytest.raises(UserError, match="image 3"):
        cds(z, normalize=False)
