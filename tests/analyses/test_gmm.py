import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

import latentlab.latents
from analyses import gmm as module
from analyses.gmm import gmm
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents
from latentlab.measurement import Measurement
from latentlab.registry import measure


def modes(k: int, n: int = 1500, shape: tuple[int, ...] = (4, 1, 1), spread: float = 12.0) -> ArrayLatents:
    """Latents of ``k`` well separated tilted Gaussians of equal weight."""
    generator = torch.Generator().manual_seed(5)
    d = math.prod(shape)
    means = spread * torch.randn(k, d, generator=generator)
    mixing = torch.eye(d) + 0.5 * torch.randn(k, d, d, generator=generator)
    labels = torch.arange(n) % k
    noise = torch.randn(n, 1, d, generator=generator)
    return ArrayLatents((means[labels] + (noise @ mixing[labels]).squeeze(1)).reshape(n, *shape))


@pytest.fixture(scope="module")
def six() -> ArrayLatents:
    return modes(6)


@pytest.fixture(scope="module")
def sweep(six: ArrayLatents) -> Measurement:
    return gmm(six, components=(1, 2, 4, 5, 6, 7, 9), dims=4)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied"])
@pytest.mark.parametrize(("dims", "expected"), [(4, 5.67575413), (5, 7.09469267)])
def test_one_component_has_the_closed_form(covariance: str, dims: int, expected: float) -> None:
    # Standardised principal components have covariance I, so NLL = d/2 (log 2 pi + 1).
    found = gmm(modes(3, shape=(2, 2, 2)), components=[1], covariance=covariance, dims=dims)
    assert found.details["train_nll"] == [pytest.approx(expected, abs=1e-8)]
    assert expected == pytest.approx(dims / 2 * (math.log(2 * math.pi) + 1), abs=1e-8)
    assert found.value == 1 and found.interval == (1, 1)


def test_counts_six_modes(sweep: Measurement) -> None:
    assert sweep.value == 6 and sweep.interval[0] <= 6 <= sweep.interval[1]
    assert sweep.companions["K at lowest held-out NLL"].value == 6
    assert (sweep.unit, sweep.direction, sweep.n) == ("components", "lower", 1500)
    assert sweep.details["components"] == [1, 2, 4, 5, 6, 7, 9] and sweep.details["converged"] == [True] * 7


def test_counts_one_mode() -> None:
    for covariance in ("full", "diag", "tied"):
        assert gmm(modes(1), components=(1, 2, 5), covariance=covariance).value == 1


def test_diagonal_needs_more_components_than_full() -> None:
    """A tilted mode is one full Gaussian and several diagonal ones."""
    x = torch.randn(900, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([6.0, 0.3])
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    rows = torch.where(torch.arange(900)[:, None] % 2 == 0, x @ turn + 15, x @ turn.T)
    full, diagonal = (
        gmm(ArrayLatents(rows[:, :, None, None]), components=(1, 2, 4, 6), covariance=c, dims=2)
        for c in ("full", "diag")
    )
    assert full.value == 2 < diagonal.value


def test_equals_scikit_learn_from_end_to_end(six: ArrayLatents, sweep: Measurement) -> None:
    rows = six.take(slice(None)).flatten(1).double().numpy()
    training = module._split(six.n, 0.2, seed=0)
    assert training.sum() == sweep.details["n_train"] == 1200
    axes = PCA(4).fit(rows[training])
    train, held = ((axes.transform(part)) for part in (rows[training], rows[~training]))
    scale = train.std(0)
    peer = GaussianMixture(6, n_init=5, random_state=0).fit(train / scale)
    at = sweep.details["components"].index(6)
    for part, key in ((train, "train_nll"), (held, "heldout_nll")):
        assert sweep.details[key][at] == pytest.approx(-peer.score(part / scale), abs=0.02)
    assert sweep.details["bic"][at] == pytest.approx(peer.bic(train / scale), rel=1e-3)
    assert sweep.details["n_parameters"][at] == peer._n_parameters()


def test_bootstrap_of_the_count_is_the_obvious_one() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(np.array([0, 0.4, 0.5]), size=(40, 3))
    fits = module.gmm(modes(2), components=(1, 2, 3), dims=2, max_iter=5)
    sweep = module._Sweep((1, 2, 3), [_Parameters(p) for p in (5, 11, 17)], train, train)
    assert fits.details["n_parameters"] == [5, 11, 17]
    draws = module.bootstrap_means(np.eye(40), seed=3) * 40  # how often each image is drawn
    slow = [
        (1, 2, 3)[np.argmin([-2 * (count @ train[:, j]) + p * math.log(40) for j, p in enumerate((5, 11, 17))])]
        for count in draws
    ]
    assert len(set(slow)) > 1
    np.testing.assert_array_equal(module._resampled_counts(sweep, seed=3), slow)


class _Parameters:
    """Stands for a fit of which only the number of parameters counts."""

    def __init__(self, n_parameters: int) -> None:
        self.mixture = self
        self.n_parameters = n_parameters


def test_companions_and_threshold(six: ArrayLatents, sweep: Measurement) -> None:
    nll = dict(zip(sweep.details["components"], sweep.details["heldout_nll"], strict=True))
    for k in (1, 6, 9):
        value, interval = sweep.companions[f"held-out NLL@{k}"]
        assert value == pytest.approx(nll[k], abs=1e-12) and interval[0] < value < interval[1]
    assert nll[2] > nll[4] > nll[5] > nll[6]
    at = gmm(six, components=(1, 2, 4, 5, 6), dims=4, threshold=nll[4]).companions["K at threshold"]
    assert at.value == 4
    never = gmm(six, components=(1, 2), dims=4, threshold=-50.0)
    assert "K at threshold" not in never.companions
    assert any("no number of components reaches the threshold -50" in warning for warning in never.warnings)


def test_batches_and_cache_do_not_matter(six: ArrayLatents, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gmm(six, components=(1, 2, 6), dims=4)
    monkeypatch.setattr(latentlab.latents, "BATCH_BYTES", 16 * 190)
    for cache in (0, 1 << 28):
        monkeypatch.setattr(module, "CACHE_BYTES", cache)
        pieces = gmm(six, components=(1, 2, 6), dims=4)
        for key in ("train_nll", "heldout_nll", "bic"):
            np.testing.assert_allclose(pieces.details[key], whole.details[key], rtol=1e-9)


def test_same_seed_same_json(six: ArrayLatents) -> None:
    first, again, other = (gmm(six, components=(1, 3), seed=seed).to_json() for seed in (1, 1, 2))
    assert first == again != other


def test_store_equals_array(six: ArrayLatents, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from latentlab import LatentStore

    save_file({"latents": six.take(slice(None))}, tmp_path / "latents_rank00_shard000.safetensors")
    array, store = (gmm(x, components=(1, 6), dims=4) for x in (six, LatentStore(tmp_path)))
    assert array.to_json() == store.to_json()


def test_sequences_count_too() -> None:
    found = measure("gmm", latents=np.random.default_rng(0).normal(size=(300, 6, 2)), components=[1, 2])  # [n,l,c]
    assert found.value == 1 and found.parameters["dims"] == found.details["dims"] <= 12
    assert json.loads(found.to_json())["details"]["explained"] > 0.9


def test_default_sweep_ends_where_parameters_outgrow_the_numbers() -> None:
    """160 training images in 4 dimensions are 640 numbers; K full Gaussians have 15 K - 1 parameters: 64 allow K = 1, 2."""
    few = gmm(modes(2, n=200), dims=4)
    assert few.details["components"] == [1, 2]
    assert any(w.startswith("5, 10, 20, 50 components were not tried") for w in few.warnings)
    assert gmm(modes(2, n=200), dims=4, covariance="diag").details["components"] == [1, 2, 5]


def test_cautions(six: ArrayLatents) -> None:
    cut = gmm(six, components=(1, 2, 4), max_iter=1)
    assert any(w.startswith("EM did not converge for 1, 2, 4 components") for w in cut.warnings)
    assert any(w.startswith("BIC is lowest at the most components tried (4)") for w in cut.warnings)
    assert not any("per parameter" in w for w in cut.warnings)
    scarce = gmm(modes(1, n=60, shape=(8, 2, 2)), components=(1, 2), dims=30)
    assert any(
        w.startswith("fewer than 10 training numbers per parameter for 1, 2 components") for w in scarce.warnings
    )


def test_axes_that_follow_the_training_images_are_told() -> None:
    """Of white noise in far more dims than images the widest axes of some images are no axes of the others."""
    noise = torch.randn(60, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    few = gmm(ArrayLatents(noise), components=(1,), dims=10)
    assert few.companions["held-out NLL@1"].value < few.companions["train NLL@1"].value
    assert any("the principal components of 48 images of 1024 dims follow these images" in w for w in few.warnings)
    many = gmm(modes(1, n=400, shape=(8, 1, 1)), components=(1,), dims=8)
    assert not any("principal components of" in w for w in many.warnings)


def test_limit_takes_images_evenly_from_the_classes(six: ArrayLatents) -> None:
    few = gmm(six, components=[1], limit=100)
    assert few.n == 100 and few.details["n_train"] == 80
    assert gmm(six, components=[1], limit=six.n).to_json() != few.to_json()


def test_warns_when_the_components_do_not_explain_enough() -> None:
    found = gmm(modes(1, n=400, shape=(10, 3, 3), spread=0.0), components=[1], most_dims=5)
    assert any(w.startswith("5 PCA dimensions explain only") for w in found.warnings)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"components": (1, 1201)}, "asks for 1201 components, but only 1200 images are left for training"),
        ({"components": ()}, "at least one"),
        ({"components": (0, 2)}, "components must be positive integers"),
        ({"components": (1.5,)}, "components must be positive integers"),
        ({"covariance": "spherical"}, "unknown covariance 'spherical'"),
        ({"heldout": 0.0}, "heldout must lie between 0 and 1, got 0.0"),
        ({"heldout": 1.0}, "heldout must lie between 0 and 1, got 1.0"),
        ({"heldout": 1e-5}, "heldout=1e-05 of 1500 images leaves 0 to test"),
        ({"n_init": 0}, "n_init must be at least 1, got 0"),
        ({"dims": 5}, "dims must lie between 1 and 4"),
        ({"explained": 1.2}, "explained must lie between 0 and 1"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
    ],
)
def test_wrong_parameters_are_refused(six: ArrayLatents, parameters: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gmm(six, **parameters)


def test_latents_without_a_density_are_refused() -> None:
    with pytest.raises(UserError, match="all points are equal"):
        gmm(ArrayLatents(torch.ones(50, 2, 2, 2)))
    broken = torch.randn(50, 2, 2, 2)
    broken[7, 1] = math.nan
    with pytest.raises(UserError, match="1 of 50 latents contain NaN or infinity \\(first: image 7\\)"):
        gmm(ArrayLatents(broken))
    two = torch.tensor([0.0, 1.0]).repeat(50).reshape(100, 1, 1, 1).repeat(1, 2, 1, 1)
    with pytest.raises(UserError, match="5 components need 5 different points, there are only 2"):
        gmm(ArrayLatents(two), components=[5], dims=1)
