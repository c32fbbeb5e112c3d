"""RMSC against its definition, closed forms, and what must not change the value."""

import numpy as np
import pytest

import latentlab
from latentlab.errors import Unmeasurable, UserError


def rmsc(z: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("rmsc", z, **options)


def reference(z: np.ndarray, normalize: bool = True) -> np.ndarray:
    """The definition, token by token, [n]; z [n,c,s]."""
    z = z.astype(np.float64)
    if normalize:
        z = (z - z.mean((0, 2), keepdims=True)) / z.std((0, 2), ddof=1, keepdims=True)
    values = []
    for x in z:
        units = [token / max(np.linalg.norm(token), 1e-8) for token in x.T]
        mean = np.mean(units, axis=0)
        values.append(np.sqrt(np.mean([np.sum((unit - mean) ** 2) for unit in units])))
    return np.array(values)


def some_latents(n: int = 7, shape: tuple[int, ...] = (4, 3, 5), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *shape)) + 2 * rng.standard_normal((n, shape[0], *(1 for _ in shape[1:]))) + 1


def test_orthogonal_and_opposite_tokens() -> None:
    """s orthogonal tokens have a mean of length 1/sqrt(s); opposite ones cancel; equal ones leave nothing."""
    orthogonal = np.eye(6).reshape(1, 6, 2, 3) * np.arange(1, 7).reshape(2, 3)
    assert rmsc(orthogonal, normalize=False).value == pytest.approx(np.sqrt(1 - 1 / 6), abs=1e-12)
    opposite = np.array([3.0, -3.0, 1.0, -1.0]).reshape(1, 1, 2, 2) * np.ones((1, 2, 1, 1))
    assert rmsc(opposite, normalize=False).value == pytest.approx(1, abs=1e-12)
    assert rmsc(np.abs(opposite), normalize=False).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_loops(normalize: bool) -> None:
    z = some_latents()
    measured = rmsc(z, normalize=normalize)
    values = reference(z.reshape(7, 4, 15), normalize)
    assert measured.value == pytest.approx(values.mean(), abs=1e-12)
    assert measured.details["quantiles"][[0, -1]] == pytest.approx([values.min(), values.max()], abs=1e-12)
    assert measured.direction == "none"


def test_tokens_that_are_almost_alike_keep_their_digits_in_float32() -> None:
    """1 - |mean|^2 would cancel: the value is 4e-3, and its square at the rounding of float32 numbers near 1."""
    z = (10 + 0.02 * np.random.default_rng(0).standard_normal((50, 8, 8, 8))).astype(np.float32)
    exact = reference(z.reshape(50, 8, 64), normalize=False).mean()
    assert exact < 5e-3
    assert rmsc(z, normalize=False).value == pytest.approx(exact, abs=1e-8)


def test_tokens_need_no_grid_and_their_order_does_not_matter() -> None:
    z = some_latents()
    tokens = z.reshape(7, 4, 15).transpose(0, 2, 1)
    value = rmsc(z).value
    assert rmsc(tokens).value == pytest.approx(value, abs=1e-12)
    assert rmsc(tokens[:, ::-1].copy()).value == pytest.approx(value, abs=1e-12)


def test_invariances(monkeypatch: pytest.MonkeyPatch) -> None:
    z = some_latents(40)
    value = rmsc(z).value
    assert rmsc(z * np.array([1, 20, 0.3, 5])[:, None, None] + 3).value == pytest.approx(value, abs=1e-10)
    assert rmsc(z[::-1].copy()).value == pytest.approx(value, abs=1e-13)
    assert rmsc(z.astype(np.float32)).value == pytest.approx(value, abs=1e-7)
    monkeypatch.setattr("analyses.spatial._PIECE_BYTES", 1000)
    assert rmsc(z).value == pytest.approx(value, abs=1e-13)


def test_interval_is_the_bootstrap_over_images_and_replicates_are_paired() -> None:
    z = some_latents(400)
    measured = rmsc(z, normalize=False)
    half = 1.96 * reference(z.reshape(400, 4, 15), normalize=False).std() / np.sqrt(400)
    assert np.diff(measured.interval) == pytest.approx(2 * half, rel=0.15)
    assert measured.interval == pytest.approx(np.percentile(measured.replicates, (2.5, 97.5)))
    other = rmsc(z + 0.1 * some_latents(400, seed=1), normalize=False)
    assert (measured.replicates - other.replicates).std() < 0.5 * measured.replicates.std()
    one = rmsc(z[:1])
    assert one.interval is None and one.replicates is None and "one image" in one.warnings[0]


def test_one_token_has_no_contrast() -> None:
    for shape in ((9, 4, 1, 1), (9, 4)):
        with pytest.raises(Unmeasurable, match="these latents have one each"):
            latentlab.measure("rmsc", latents=np.ones(shape))


def test_non_finite_latents_are_refused() -> None:
    z = some_latents()
    z[3, 1, 0, 0] = np.inf
    with pytest.raises(UserError, match="image 3"):
        rmsc(z, normalize=False)
