"""Codebook statistics: shares with closed forms, scipy's entropy, angles by hand, and what must not change the values."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

import latentlab
from analyses import codebook as module
from latentlab import ArrayLatents, TokenizerSpec
from latentlab.errors import UserError


def statistics(codes: np.ndarray, vectors: np.ndarray | None = None, **options: object) -> latentlab.Measurement:
    """Measure codes [n,h,w] or [n,l], on latents that are ``vectors`` [v,c] (or numbers) at the codes."""
    table = np.arange(codes.max() + 1.0)[:, None] + 1 if vectors is None else vectors
    z = table[codes]
    return latentlab.measure("codebook", np.moveaxis(z, -1, 1) if codes.ndim == 3 else z, codes=codes, **options)


def zipf(n: int = 40, v: int = 30, seed: int = 0) -> np.ndarray:
    p = 1 / np.arange(1, v + 1)
    return np.random.default_rng(seed).choice(v, size=(n, 4, 5), p=p / p.sum())


def test_shares_with_a_closed_form() -> None:
    """1/2, 1/4, 1/4 of four codes: 1.5 bits."""
    measured = statistics(np.array([[0, 0, 1, 2], [2, 1, 0, 0]]), vocabulary=4)
    found = {name: estimate.value for name, estimate in measured.companions.items()}
    assert measured.value == pytest.approx(2**1.5 / 4, abs=1e-12)
    assert found["usage"] == 0.75
    assert found["entropy_bits"] == pytest.approx(1.5, abs=1e-12)
    assert found["perplexity"] == pytest.approx(2**1.5, abs=1e-12)
    assert found["normalized_entropy"] == pytest.approx(0.75, abs=1e-12)
    assert found["entropy_bits_miller_madow"] == pytest.approx(1.5 + 2 / (16 * np.log(2)), abs=1e-12)
    assert found["effective_vocabulary"] == pytest.approx(8 * 7 / (4 * 3 + 2 + 2), abs=1e-12)
    np.testing.assert_allclose(measured.details["position_entropy"], [1, 1, 1, 1])
    assert measured.details["ranks"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(measured.details["frequency"], [0.5, 0.25, 0.25])


def test_ends_of_the_range() -> None:
    assert statistics(np.arange(8).reshape(2, 4), vocabulary=8).value == pytest.approx(1, abs=1e-12)
    one = statistics(np.zeros((3, 4), dtype=int), vocabulary=8)
    assert one.value == 1 / 8 and one.companions["entropy_bits"].value == 0
    assert any("collapsed" in warning for warning in one.warnings)


@pytest.mark.parametrize("table", [1, 75, 1 << 24])
def test_entropies_are_scipys(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the positions are counted in several passes."""
    monkeypatch.setattr(module, "_TABLE", table)
    codes = zipf()
    measured = statistics(codes, vocabulary=30)
    assert measured.companions["entropy_bits"].value == pytest.approx(
        scipy_entropy(np.bincount(codes.ravel()), base=2), abs=1e-12
    )
    by_position = [[scipy_entropy(np.bincount(codes[:, i, j]), base=2) for j in range(5)] for i in range(4)]
    np.testing.assert_allclose(measured.details["position_entropy"], by_position, atol=1e-12)
    assert measured.companions["mean_position_entropy_bits"].value == pytest.approx(np.mean(by_position))


def test_effective_vocabulary_is_unbiased_where_perplexity_is_not() -> None:
    """100 equally frequent codes seen by 200 tokens each time."""
    rng = np.random.default_rng(0)
    runs = [statistics(rng.integers(0, 100, (20, 10)), vocabulary=100).companions for _ in range(60)]
    assert 1 / np.mean([1 / run["effective_vocabulary"].value for run in runs]) == pytest.approx(100, rel=0.05)
    assert np.mean([run["perplexity"].value for run in runs]) < 85
    plain, corrected = (
        np.log2(100) - np.mean([run[name].value for run in runs])
        for name in ("entropy_bits", "entropy_bits_miller_madow")
    )
    assert abs(corrected) < plain / 3


def test_angles_of_known_vectors() -> None:
    """Three vectors in a plane at 0, 30 and 120 degrees, of different lengths."""
    angle = np.deg2rad([0, 30, 120])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1) * [[1], [5], [0.1]]
    codes = np.array([[0, 1, 2, 0]])
    given = statistics(codes, vectors, codebook=torch.from_numpy(vectors))
    read = statistics(codes, vectors, vocabulary=3)
    for measured in (given, read):
        found = {name: estimate.value for name, estimate in measured.companions.items()}
        assert found["mean_nearest_angle_degrees"] == pytest.approx((30 + 30 + 90) / 3, abs=1e-6)
        assert found["least_nearest_angle_degrees"] == pytest.approx(30, abs=1e-6)
        assert found["mean_cosine"] == pytest.approx(np.cos(np.deg2rad([30, 120, 90])).mean(), abs=1e-9)
    assert not any("angles" in warning for warning in given.warnings)
    assert any("read off the latents" in warning for warning in read.warnings)


def test_orthogonal_vectors_and_tiny_angles() -> None:
    codes = np.arange(6).reshape(1, 6)
    companions = statistics(codes, np.eye(6), codebook=torch.eye(6)).companions
    assert companions["mean_nearest_angle_degrees"].value == pytest.approx(90, abs=1e-9)
    assert companions["mean_cosine"].value == pytest.approx(0, abs=1e-12)
    close = torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64)
    found = statistics(np.array([[0, 1]]), codebook=close).companions["least_nearest_angle_degrees"].value
    assert found == pytest.approx(np.rad2deg(1e-9), rel=1e-6)


def test_vectors_of_unused_codes_count_only_when_they_are_known() -> None:
    vectors = np.array([[1.0, 0], [0, 1], [1, 0.1]])
    codes = np.array([[0, 1], [1, 0]])
    read = statistics(codes, vectors, vocabulary=3).companions
    given = statistics(codes, vectors, codebook=torch.from_numpy(vectors)).companions
    assert read["least_nearest_angle_degrees"].value == pytest.approx(90)
    assert given["least_nearest_angle_degrees"].value == pytest.approx(np.rad2deg(np.arctan(0.1)))


def test_latents_that_are_not_code_vectors_give_no_angles() -> None:
    codes = zipf(5)
    z = np.random.default_rng(0).standard_normal((5, 3, 4, 5))
    measured = latentlab.measure("codebook", z, codes=codes, vocabulary=30)
    assert "mean_cosine" not in measured.companions
    assert any("give the codebook" in warning for warning in measured.warnings)
    pooled = latentlab.measure("codebook", z[..., :1], codes=codes, vocabulary=30)
    assert "mean_cosine" not in pooled.companions


def test_zero_vectors_have_no_angle() -> None:
    vectors = torch.tensor([[0.0, 0], [1, 0], [0, 2]])
    measured = statistics(np.array([[0, 1, 2]]), codebook=vectors)
    assert measured.companions["mean_nearest_angle_degrees"].value == pytest.approx(90)
    assert any("1 code vectors are zero" in warning for warning in measured.warnings)


def test_interval_has_the_width_of_repeated_samples() -> None:
    results = [statistics(zipf(200, seed=seed), vocabulary=30) for seed in range(40)]
    spread = np.std([m.value for m in results])
    assert np.mean([m.replicates.std() for m in results]) == pytest.approx(spread, rel=0.35)
    low, high = results[0].interval
    assert low < results[0].value < high
    assert low == pytest.approx(np.percentile(results[0].replicates, 2.5))


def test_numbering_order_batches_and_layout_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = zipf()
    whole = statistics(codes, vocabulary=30)
    other_names = np.random.default_rng(1).permutation(30)[codes][::-1].copy()
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 100)
    for same in (other_names, codes.reshape(40, 20)):
        measured = statistics(same, vocabulary=30)
        assert measured.value == pytest.approx(whole.value, rel=1e-12)
        for name in ("usage", "effective_vocabulary", "mean_position_entropy_bits"):
            assert measured.companions[name].value == pytest.approx(whole.companions[name].value, rel=1e-12)


def test_a_large_vocabulary_is_counted() -> None:
    """2^18 codes, each position in turn; the rank-frequency curve stays short."""
    codes = np.random.default_rng(0).integers(0, 1 << 18, (300, 128))
    z = np.zeros((300, 128, 1), dtype=np.float32)
    measured = latentlab.measure("codebook", z, codes=codes, vocabulary=1 << 18)
    assert measured.companions["usage"].value == len(np.unique(codes)) / (1 << 18)
    assert len(measured.details["ranks"]) <= 512
    assert any("too low" in warning for warning in measured.warnings)


def test_vocabulary_comes_from_codebook_argument_or_specification() -> None:
    spec = TokenizerSpec("toy", "test", "vq", "sequence", channels=1, codebook_size=16)
    codes = np.array([[0, 1, 2, 3]])
    latents = ArrayLatents(codes[..., None] + 1.0, codes=codes, spec=spec)
    assert latentlab.measure("codebook", store=latents).value == pytest.approx(4 / 16)
    assert latentlab.measure("codebook", store=latents, vocabulary=8).value == pytest.approx(4 / 8)
    assert latentlab.measure("codebook", store=latents, codebook=torch.eye(32)).value == pytest.approx(4 / 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "number of codes is not known"),
        ({"vocabulary": 0}, "vocabulary must be at least 1, got 0"),
        ({"vocabulary": 20}, "between 0 and vocabulary - 1 = 19, found 29"),
        ({"vocabulary": 31, "codebook": torch.eye(30)}, "contradicts the codebook of 30 vectors"),
        ({"codebook": torch.zeros(3)}, r"vectors \[v,c\], got shape \[3\]"),
        ({"codebook": torch.full((30, 2), torch.nan)}, "finite"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        statistics(zipf(), **options)


@pytest.mark.parametrize(
    ("codes", "got"),
    [
        (np.full((5, 2, 2), 1.5), r"torch.float64 of shape \[5, 2, 2\]"),
        (np.full((5, 2, 2), np.nan), "torch.float64"),
        (np.ones(5, dtype=int), r"torch.int64 of shape \[5\]"),
        (np.ones((5, 1, 2, 2), dtype=int), r"torch.int64 of shape \[5, 1, 2, 2\]"),
    ],
)
def test_codes_that_are_no_codes_are_refused(codes: np.ndarray, got: str) -> None:
    with pytest.raises(UserError, match=rf"codes must be integers \[n,h,w\] or \[n,l\], got {got}"):
        latentlab.measure("codebook", np.ones((5, 3, 2, 2)), codes=codes, vocabulary=4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_any_integers_are_codes(dtype: type) -> None:
    expected = statistics(zipf(), vocabulary=30).value
    z = np.ones((40, 1, 4, 5))
    assert latentlab.measure("codebook", z, codes=zipf().astype(dtype), vocabulary=30).value == expected


def test_negative_codes_and_continuous_tokenizers_are_refused() -> None:
    with pytest.raises(UserError, match="found -1"):
        latentlab.measure("codebook", np.zeros((1, 2, 1)), codes=np.array([[0, -1]]), vocabulary=4)
    with pytest.raises(UserError, match="'codebook' needs codes"):
        latentlab.measure("codebook", np.zeros((3, 2, 1)), vocabulary=4)
