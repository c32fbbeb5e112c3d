"""iFID on a made-up decoder and extractor, against the definition written out in numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from analyses.ifid import ifid
from analyses.slerp import slerp
from latentlab import ArrayLatents, measure
from latentlab.errors import UserError

N, SHAPE, SIDE, WIDTH = 160, (3, 4, 4), 8, 5
RANDOM = np.random.default_rng(0)
DECODER = torch.from_numpy(RANDOM.standard_normal((48, 3 * SIDE**2)) / 16)
FEATURES = torch.from_numpy(RANDOM.standard_normal((3 * SIDE**2, WIDTH)) / 8)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def decode(z: Tensor) -> Tensor:
    return torch.tanh(z.flatten(1).double() @ DECODER).view(-1, 3, SIDE, SIDE).to(z.dtype)


def describe(x: Tensor) -> Tensor:
    return x.flatten(1).double() @ FEATURES


def made_up(n: int = N, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents of four classes, labels, and images that decoding does not quite give back."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    z = rng.standard_normal((n, *SHAPE)) + 1.5 * np.random.default_rng(9).standard_normal((4, *SHAPE))[labels]
    x = decode(torch.from_numpy(z)).numpy() + 0.1 * rng.standard_normal((n, 3, SIDE, SIDE))
    return z, labels, x.clip(-1, 1)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.trace(root))


def by_definition(z, x, gallery, same, intp="slerp", alpha=0.5, allowed=None) -> tuple[float, np.ndarray]:
    """Image by image."""
    interpolants, chosen = [], []
    for i, query in enumerate(z):
        flat, others = query.ravel(), gallery.reshape(len(gallery), -1)
        if intp == "slerp":
            nearness = others @ flat / np.linalg.norm(others, axis=1) / np.linalg.norm(flat)
        else:
            nearness = -((others - flat) ** 2).sum(1)
        if same:
            nearness[i] = -np.inf
        if allowed is not None:
            nearness[~allowed[i]] = -np.inf
        j = int(np.argmax(nearness))
        chosen.append(j)
        if intp == "slerp":
            theta = np.arccos(flat @ others[j] / np.linalg.norm(flat) / np.linalg.norm(others[j]))
            point = (np.sin((1 - alpha) * theta) * flat + np.sin(alpha * theta) * others[j]) / np.sin(theta)
        else:
            point = (1 - alpha) * flat + alpha * others[j]
        interpolants.append(point.reshape(query.shape))
    decoded = decode(torch.from_numpy(np.stack(interpolants)))
    return frechet(describe(torch.from_numpy(x)).numpy(), describe(decoded).numpy()), np.array(chosen)


def run(z, x, labels=None, **parameters):
    return measure("ifid", z, labels, images=x, decode=decode, extractor=describe, **parameters)


@pytest.mark.parametrize("intp", ["slerp", "linear"])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("other_gallery", [False, True])
def test_equals_the_definition_step_by_step(intp: str, alpha: float, other_gallery: bool) -> None:
    z, _, x = made_up()
    gallery = made_up(90, seed=5)[0] if other_gallery else z
    result = run(z, x, intp=intp, alpha=alpha, gallery=gallery if other_gallery else None)
    expected, chosen = by_definition(z, x, gallery, not other_gallery, intp, alpha)
    np.testing.assert_array_equal(result.details["neighbours"], chosen)
    assert result.value == pytest.approx(expected, rel=1e-6)
    rebuilt = frechet(describe(torch.from_numpy(x)).numpy(), describe(decode(torch.from_numpy(z))).numpy())
    assert result.companions["rfd_describe"].value == pytest.approx(rebuilt, rel=1e-6)
    assert result.n == N and result.direction == "lower"
    low, high = result.interval
    assert low < result.value < high


def test_float32_latents_agree() -> None:
    z, _, x = made_up()
    single = run(z.astype(np.float32), x.astype(np.float32))
    assert single.value == pytest.approx(run(z, x).value, rel=2e-5)


def test_the_variant_names_features_and_pixels() -> None:
    z, _, x = made_up()
    assert run(z, x).variant == (
        "fd_describe of slerp 0.5, top-1 cosine neighbour, among these images without itself, images neither clamped nor "
        "quantised"
    )
    other = run(z, x, sample_topk=3, intp="linear", quantize=True, gallery=made_up(50, seed=3)[0])
    assert other.variant == "fd_describe of linear 0.5, one of the top 3 L2 neighbour, in a gallery of 50, 8-bit images"


def test_alpha_zero_is_the_reconstruction() -> None:
    z, _, x = made_up()
    result = run(z, x, alpha=0.0)
    assert result.value == pytest.approx(result.companions["rfd_describe"].value, rel=1e-9)


def test_quantising_rounds_originals_and_interpolants() -> None:
    z, _, x = made_up()

    def rounded(images: Tensor) -> Tensor:
        return describe(((images + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1)

    inside = measure("ifid", z, images=x, decode=decode, extractor=rounded)
    assert run(z, x, quantize=True).value == pytest.approx(inside.value, rel=1e-5)
    assert run(z, x, quantize=True).value != pytest.approx(run(z, x).value, rel=1e-6)


def test_no_latent_is_its_own_neighbour() -> None:
    z, _, x = made_up()
    result = run(z, x)
    assert (result.details["neighbours"] != np.arange(N)).all()
    copied = run(z, x, gallery=z.copy())  # the same content is the same set
    np.testing.assert_array_equal(copied.details["neighbours"], result.details["neighbours"])
    order = np.random.default_rng(0).permutation(N)
    shuffled = run(z, x, gallery=z[order])
    np.testing.assert_array_equal(order[shuffled.details["neighbours"]], result.details["neighbours"])
    assert f"{N} of {N} queries are in the gallery too" in shuffled.warnings[-1] and shuffled.value == result.value
    assert shuffled.variant == copied.variant == result.variant and not copied.warnings


def test_latents_that_occur_twice_in_the_set_are_neighbours_in_any_order() -> None:
    z, labels, x = made_up()
    z[7] = z[3]
    labels[3], labels[7] = 0, 1
    result = run(z, x)
    assert result.details["neighbours"][[3, 7]].tolist() == [7, 3]
    order = np.random.default_rng(0).permutation(N)
    shuffled = run(z, x, gallery=z[order])
    assert set(shuffled.details["neighbours"][[3, 7]]) == set(np.argsort(order)[[3, 7]])
    assert shuffled.value == result.value == run(z, x, gallery=z.copy()).value
    for back in (order, np.arange(N)[::-1]):  # whose copies have other labels
        of_class = run(z, x, labels, gallery=z[back].copy(), gallery_labels=labels[back].tolist(), per_class=True)
        assert of_class.value == run(z, x, labels, per_class=True).value


@pytest.mark.parametrize("sample_topk", [None, 4])
def test_no_copy_of_a_query_is_its_neighbour(sample_topk: int | None) -> None:
    """Galleries with every query twice, with a third of them, and with copies under another label in front."""
    z, labels, x = made_up()
    twice = run(z, x, gallery=np.concatenate([z, z]))
    assert twice.value == run(z, x).value and f"{N} of {N} queries" in twice.warnings[-1]
    wider = np.concatenate([z[::3], made_up(40, seed=2)[0], z, z[::3]])
    drawn = run(z, x, gallery=wider, sample_topk=sample_topk).details["neighbours"]
    assert (wider[drawn] != z).any((1, 2, 3)).all()
    both, marks = np.concatenate([z, z]), torch.from_numpy(np.concatenate([(labels + 1) % 4, labels]))
    relabelled = run(z, x, labels, per_class=True, gallery=both, gallery_labels=marks)
    assert relabelled.value == run(z, x, labels, per_class=True).value


def test_queries_among_a_larger_gallery_are_not_their_own_neighbours() -> None:
    z, labels, x = made_up()
    other = made_up(seed=2)[0]
    wider = np.concatenate([other, z[: N // 2]])
    found = run(z, x, gallery=wider).details["neighbours"]
    alone = np.array([wider[j].tobytes() == z[i].tobytes() for i, j in enumerate(found)])
    assert not alone.any() and (found >= len(other)).any()
    of_class = run(z, x, labels, gallery=wider, gallery_labels=[*labels, *labels[: N // 2]], per_class=True)
    chosen = np.concatenate([labels, labels[: N // 2]])[of_class.details["neighbours"]]
    np.testing.assert_array_equal(chosen, labels)
    assert (of_class.details["neighbours"] - len(other) != np.arange(N)).all()


def test_numpy_functions_do() -> None:
    z, _, x = made_up()
    arguments = {
        "decode": lambda latents: decode(latents).numpy(),
        "extractor": lambda images: describe(images).numpy(),
    }
    assert measure("ifid", z, images=x, **arguments).value == pytest.approx(run(z, x).value, rel=1e-12)


def test_a_limit_keeps_the_whole_gallery() -> None:
    z, labels, x = made_up()
    whole, some = run(z, x, labels), run(z, x, labels, limit=40)
    queries = some.details["queries"]
    assert some.n == 40 and np.bincount(labels[queries]).tolist() == [10] * 4
    np.testing.assert_array_equal(some.details["neighbours"], whole.details["neighbours"][queries])


def test_neighbours_of_the_same_class() -> None:
    z, labels, x = made_up()
    result = run(z, x, labels, per_class=True)
    same = labels[:, None] == labels[None, :]
    expected, chosen = by_definition(z, x, z, True, allowed=same)
    np.testing.assert_array_equal(result.details["neighbours"], chosen)
    assert result.value == pytest.approx(expected, rel=1e-6)
    gallery, gallery_labels, _ = made_up(100, seed=6)
    other = run(z, x, labels, per_class=True, gallery=gallery, gallery_labels=gallery_labels)
    _, chosen = by_definition(z, x, gallery, False, allowed=labels[:, None] == gallery_labels[None, :])
    np.testing.assert_array_equal(other.details["neighbours"], chosen)


def test_sampled_neighbours_follow_their_weights() -> None:
    """One latent many times: how often each of its ten nearest is drawn, against softmax(-mean squared difference)."""
    rng = np.random.default_rng(2)
    query = rng.standard_normal(SHAPE)
    gallery = query + np.sqrt(np.linspace(0.2, 3, 30))[:, None, None, None] * rng.standard_normal((30, *SHAPE))
    n = 4000
    z = np.broadcast_to(query, (n, *SHAPE))
    x = rng.uniform(-1, 1, (n, 3, SIDE, SIDE))
    drawn = run(z, x, gallery=gallery, sample_topk=10, intp="linear", limit=None).details["neighbours"]
    distances = ((gallery - query) ** 2).mean((1, 2, 3))
    nearest = np.argsort(distances)[:10]
    weights = np.exp(-distances[nearest])
    weights /= weights.sum()
    counts = np.array([(drawn == j).sum() for j in nearest])
    assert counts.sum() == n
    deviation = (counts - n * weights) / np.sqrt(n * weights * (1 - weights))
    assert np.abs(deviation).max() < 4


def test_draws_depend_on_seed_and_place_only() -> None:
    z, labels, x = made_up()
    first = run(z, x, labels, sample_topk=5)
    again = run(z, x, labels, sample_topk=5)
    np.testing.assert_array_equal(first.details["neighbours"], again.details["neighbours"])
    assert (run(z, x, labels, sample_topk=5, seed=1).details["neighbours"] != first.details["neighbours"]).any()
    some = run(z, x, labels, sample_topk=5, limit=60)
    np.testing.assert_array_equal(some.details["neighbours"], first.details["neighbours"][some.details["queries"]])
    one = run(z, x, labels, sample_topk=1)
    np.testing.assert_array_equal(one.details["neighbours"], run(z, x, labels).details["neighbours"])


def test_order_and_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z, _, x = made_up()
    whole = run(z, x)
    order = np.random.default_rng(3).permutation(N)
    shuffled = run(z[order], x[order])
    assert shuffled.value == pytest.approx(whole.value, rel=1e-9)
    from latentlab.quality import features

    monkeypatch.setattr(features, "_CPU_IMAGES", 7)
    assert run(z, x).value == pytest.approx(whole.value, rel=1e-9)


def test_tokens_reach_the_decoder_in_their_own_layout() -> None:
    z, _, x = made_up()
    tokens = z.reshape(N, 16, 3)

    def decode_tokens(batch: Tensor) -> Tensor:
        assert batch.shape[1:] == (16, 3)
        return decode(batch.reshape(len(batch), *SHAPE))

    result = measure("ifid", tokens, images=x, decode=decode_tokens, extractor=describe)
    assert result.value == pytest.approx(run(z, x).value, rel=1e-9)


def test_few_images_have_no_interval_and_a_warning() -> None:
    z, _, x = made_up(5)
    result = run(z, x)
    assert result.interval is None and result.replicates is None
    assert "5 images for 5 describe features" in result.warnings[0]
    assert not run(*(part for part in (made_up()[0], made_up()[2]))).warnings


def test_pictures_show_the_way() -> None:
    z, _, x = made_up()
    result = run(z, x)
    start, middle, end = result.details["pictures"]
    first, other = (torch.from_numpy(z[i : i + 1]) for i in (0, result.details["neighbours"][0]))
    for picture, latent in ((start, first), (middle, slerp(first, other, 0.5)), (end, other)):
        np.testing.assert_allclose(picture[0], (decode(latent)[0].numpy() + 1) * 127.5, atol=0.51)


def test_wrong_use_is_explained() -> None:
    z, labels, x = made_up(20)
    cases = [
        ({"images": x[:19]}, "one entry per latent: got 19 for 20"),
        ({"alpha": 1.2}, "alpha must lie in"),
        ({"intp": "mask"}, "unknown interpolation 'mask'"),
        ({"sample_topk": 0}, "sample_topk must be at least 1"),
        ({"sample_topk": 20}, "the gallery has 19 latents besides the query, too few for sample_topk=20"),
        ({"gallery": -z[:3], "sample_topk": 4}, "the gallery has 3 latents, too few for sample_topk=4"),
        ({"gallery": z[:, :2]}, r"gallery must have latents of shape \[3, 4, 4\]"),
        ({"limit": 1}, "limit must be at least 2"),
        ({"per_class": True, "labels": None}, "per_class needs labels"),
        ({"per_class": True, "gallery": z[:7]}, "labels of the gallery"),
        (
            {"per_class": True, "gallery": -z[:7], "gallery_labels": np.zeros(7)},
            "class 1 of the gallery has 0 latents, too few",
        ),
        (
            {"per_class": True, "sample_topk": 5},
            "class 0 of the gallery has 4 latents besides the query, too few for sample_topk=5: give a larger gallery",
        ),
        ({"gallery": np.concatenate([z, z]), "sample_topk": 39}, "has 38 latents besides copies of the query"),
        (
            {"gallery": np.concatenate([z[:1]] * 3)},
            "has 0 latents besides copies of the query, too few for a neighbour",
        ),
        ({"decode": lambda batch: decode(batch)[:, :, :4]}, "images of the originals' shape"),
        ({"decode": lambda batch: decode(batch) / 0}, "NaN or infinite pixels"),
        ({"extractor": "inception v3"}, "unknown feature extractor"),
    ]
    for change, message in cases:
        arguments = {"images": x, "labels": labels, "decode": decode, "extractor": describe, **change}
        with pytest.raises(UserError, match=message):
            measure("ifid", z, **arguments)


def test_a_store_and_a_direct_call_agree() -> None:
    z, labels, x = made_up()
    direct = ifid(ArrayLatents(z, labels), images=x, decode=decode, extractor=describe)
    assert direct.value == run(z, x, labels).value
    assert type(direct).from_dict(direct.to_dict()).interval == direct.interval
