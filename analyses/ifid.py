"""iFID: how real images look that are decoded halfway between two neighbouring latents.

Definition: "Making rFID predictive of diffusion gFID" (arXiv 2603.05630). Every latent is moved towards a neighbour, decoded,
and the Frechet distance between the original images and the decoded interpolants is taken. A latent space whose gaps decode
to plausible images is forgiving to a generator, which never hits encoded images exactly.

The paper takes the nearest neighbour, its code draws one of the ten nearest with weights softmax(-mean squared difference);
the neighbours come from a gallery (the training set in the code), by cosine similarity of the flattened latents for spherical
and by Euclidean distance for linear interpolation. Latents are compared as they are, without normalisation. As in the code,
images are neither clamped nor rounded to 8 bits before the features, so values differ from those of image files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from analyses.class_latents import images_by_class
from analyses.decoding import Decode, decoded, originals_of
from analyses.frechet import frechet_of_paired_features, sample_cautions
from analyses.latent_neighbours import nearest_latents
from analyses.neighbours import Metric
from analyses.slerp import lerp, slerp
from latentlab.errors import UserError, unknown_name
from latentlab.latents import ArrayLatents, ArrayLike, Latents, tokenizer_layout
from latentlab.measurement import Measurement, MetricCard
from latentlab.pixels import Pixels, as_pixels
from latentlab.quality.features import FeatureExtractor, batch_size, feature_extractor, features_of
from latentlab.quality.fidelity import as_displayed
from latentlab.registry import measurement
from latentlab.runtime import progress
from latentlab.subset import LatentSubset

Interpolation = Literal["slerp", "linear"]

_SHOWN, _SHOWN_SIDE = 6, 64
"""Interpolants kept for the picture, and their largest side in pixels."""


@measurement(
    MetricCard(
        name="ifid",
        title="Interpolation Fréchet distance",
        summary="how far images decoded halfway between neighbouring latents are from real ones",
        formula="d^2(features of x_n, features of D(slerp(z_n, z_nn(n), 0.5))),  d^2 = |mu1 - mu2|^2 + tr(S1 + S2 - "
        "2 (S1 S2)^1/2)",
        unit="squared feature distance",
        range="0 upwards; on other features than Inception's the scale is another, and the name in the variant says so",
        better="lower",
        source="arXiv 2603.05630 (paper: nearest neighbour; code: a draw from the ten nearest); cosine search for slerp, "
        "Euclidean for linear; searching the images themselves is our choice where no gallery is given",
        needs=("images", "decode"),
        confounds="reconstruction quality (reported beside it), the number of images and of gallery latents, the features",
        variants={
            "sample_topk=10": "a neighbour drawn from the ten nearest, as the authors' code does",
            "intp='linear'": "neighbours by Euclidean distance, straight line between them",
            "alpha=0.25": "how far towards the neighbour; 0 is the reconstruction",
            "per_class=True": "neighbours of the same class only",
            "gallery=train_latents": "neighbours from another set, as the authors do",
            "extractor='inception'": "features of Inception-v3, when its weights are there: then the value is an FID",
            "quantize=True": "images clipped and rounded to 8 bits first, as image files are",
        },
        invariances="order of the images (top-1, while all are used: limit=None), batch size, one positive factor on all latents "
        "that the decoder undoes",
        bias="upwards, about in proportion to 1/n; falls as the gallery grows, since neighbours come closer",
        known_values={
            "Gaussians of covariance diag(1, 4, 0.25) and diag(9, 1, 0.25), means (1, 0, 2) apart": "10",
            "published, 50,000 images, Inception": "SD-VAE 59.91, VA-VAE 19.57, MAETok 14.06",
        },
        test="tests/analyses/test_ifid.py::test_equals_the_definition_step_by_step",
    )
)
def ifid(
    latents: Latents,
    *,
    images: Pixels,
    decode: Decode,
    extractor: str | Callable[[Tensor], Tensor] = "efficientnet-lite0",
    gallery: Latents | ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    sample_topk: int | None = None,
    intp: Interpolation = "slerp",
    alpha: float = 0.5,
    per_class: bool = False,
    quantize: bool = False,
    limit: int | None = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> Measurement:
    """Measure the Frechet distance between images and what is decoded between their latents and neighbours of these.

    Args:
        latents: the queries, with labels where ``per_class`` is asked for.
        images: what they were made of, in the same order.
        decode: latents [b,c,h,w] or [b,l,c] -> images [b,3,H,W] in about [-1,1]. Interpolants of a discrete tokenizer are
            decoded as they are, without looking up the nearest code.
        extractor: name for `feature_extractor`, or a function of images [b,3,H,W] in [-1,1] that returns [b,d].
        gallery: where neighbours are looked for: latents, or arrays like those of ``latents``. None: among all ``latents``,
            where no latent is its own neighbour (one that equals it may be), and so in the same set in another order. In
            other galleries latents with the very numbers of the query do not count.
        gallery_labels: [m], of an array.
        sample_topk: draw the neighbour from this many nearest ones; None takes the nearest.
        intp: ``slerp`` or ``linear``.
        alpha: where between latent (0) and neighbour (1), in [0, 1].
        per_class: only neighbours with the query's label.
        quantize: clip and round all images to 8 bits.
        limit: at most this many queries, evenly from the classes; None for all. The gallery is always whole.
        seed: chooses the queries that ``limit`` keeps, of the draws (a function of seed and place of the image alone) and of
            the bootstrap.
        device: where the features are computed.

    Returns:
        The distance; beside it that of the reconstructions of the same images (``rfid``, or ``rfd_`` and the features).
        ``details``: ``queries`` and ``neighbours`` (indices in latents and gallery), ``pictures`` [3,6,3,h,w] uint8
        (reconstruction, interpolant, decoded neighbour).

    Raises:
        UserError: images, gallery or decoded images that do not fit, fewer candidates than needed, an option out of range, or
            weights that are not on this machine.
    """
    images = as_pixels(images)
    _check_options(intp, alpha, sample_topk, latents, per_class)
    rows, originals = originals_of(latents, images, limit, seed)
    queries = latents if len(rows) == latents.n else LatentSubset(latents, rows)
    searched = _searched(latents, rows, gallery, gallery_labels)
    nearest = _nearest(queries, searched, sample_topk or 1, intp, per_class)
    judge = feature_extractor(extractor, device)
    neighbours = _drawn(queries, searched.latents, nearest, rows, seed)
    between = slerp if intp == "slerp" else lerp
    walk = _Walk(
        queries, searched.latents, neighbours, lambda z, other: between(z, other, alpha), decode, originals.shape
    )
    real = features_of(judge, originals, quantize=quantize)
    moved, rebuilt = _features(walk, judge, batch_size(originals, device), quantize)
    result = frechet_of_paired_features(real, moved, seed)
    return Measurement(
        name="ifid",
        variant=_variant(judge, searched, sample_topk, intp, alpha, per_class, quantize),
        value=result.value,
        interval=result.estimate.interval,
        replicates=result.replicates,
        direction="lower",
        unit="squared feature distance",
        n=queries.n,
        parameters={
            "extractor": judge.name,
            "gallery": None if searched.same else searched.latents.fingerprint,
            "sample_topk": sample_topk,
            "intp": intp,
            "alpha": alpha,
            "per_class": per_class,
            "quantize": quantize,
            "limit": limit,
            "seed": seed,
        },
        companions={f"r{judge.distance}": frechet_of_paired_features(real, rebuilt, seed).estimate},
        warnings=(*sample_cautions(len(real), real.shape[1], judge.name), *_copies(searched, queries.n)),
        details={
            "queries": rows,
            "neighbours": neighbours,
            "gallery_size": searched.latents.n,
            "distance": judge.distance,
            "pictures": walk.pictures(),
        },
    )


@dataclass(frozen=True)
class _Searched:
    """Where neighbours are looked for.

    Attributes:
        latents: the gallery.
        contents: int64 [m], a number for what each gallery latent holds.
        own: int64 [n], that of each query: gallery latents with this number do not count; -1 where there are none.
        same: whether the gallery is the set that the queries come from.
        copies: how many queries were found in a gallery that was given.
    """

    latents: Latents
    contents: np.ndarray
    own: np.ndarray
    same: bool = False
    copies: int = 0


def _check_options(intp: str, alpha: float, sample_topk: int | None, latents: Latents, per_class: bool) -> None:
    if intp not in ("slerp", "linear"):
        raise unknown_name("interpolation", intp, ("slerp", "linear"))
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie in [0, 1], got {alpha}")
    if sample_topk is not None and sample_topk < 1:
        raise UserError(f"sample_topk must be at least 1, got {sample_topk}")
    if per_class and latents.labels is None:
        raise UserError("per_class needs labels, and these latents have none")


def _searched(
    latents: Latents,
    rows: np.ndarray,
    gallery: Latents | ArrayLike | None,
    labels: ArrayLike | None,
) -> _Searched:
    if gallery is None:
        return _Searched(latents, np.arange(latents.n), rows, same=True)
    if not isinstance(gallery, Latents):
        gallery = ArrayLatents(gallery, labels=labels)
    elif labels is not None:
        raise UserError("gallery_labels belong to an array: the gallery has its own")
    if gallery.shape != latents.shape:
        raise UserError(f"gallery must have latents of shape {list(latents.shape)}, got {list(gallery.shape)}")
    queries, places = _digests(latents), _digests(gallery)
    if queries == places:
        return _Searched(gallery, np.arange(gallery.n), rows, same=True)
    if sorted(queries) == sorted(places):  # one place per latent, so that equal ones stay each other's neighbours
        own = np.empty(latents.n, dtype=np.int64)
        own[_order(queries, latents.labels)] = _order(places, gallery.labels)
        return _Searched(gallery, np.arange(gallery.n), own[rows], same=True, copies=len(rows))
    numbers: dict[bytes, int] = {}
    contents = np.array([numbers.setdefault(digest, len(numbers)) for digest in places])
    own = np.array([numbers.get(queries[row], -1) for row in rows])
    return _Searched(gallery, contents, own, copies=int((own >= 0).sum()))


def _copies(searched: _Searched, n: int) -> tuple[str, ...]:
    if not searched.copies:
        return ()
    return (
        f"{searched.copies} of {n} queries are in the gallery too, number for number: not taken for their own neighbour",
    )


def _order(digests: list[bytes], labels: np.ndarray | None) -> list[int]:
    """Return the positions of ``digests`` in rising order, equal ones by their label."""
    return sorted(range(len(digests)), key=lambda i: (digests[i], 0 if labels is None else int(labels[i])))


def _digests(latents: Latents) -> list[bytes]:
    """Return a name for the content of every latent, in float32."""
    return [
        blake2b(row.tobytes(), digest_size=16).digest()
        for batch in latents.batches()
        for row in batch.float().flatten(1).numpy()
    ]


def _nearest(
    queries: Latents, searched: _Searched, k: int, intp: Interpolation, per_class: bool
) -> np.ndarray:  # => int64 [n,k]
    """Return the k nearest gallery latents of every query, of its class where asked."""
    metric: Metric = "cosine" if intp == "slerp" else "l2"
    gallery, contents, own = searched.latents, searched.contents, searched.own
    if not per_class:
        return _nearest_others(queries, gallery, contents, own, k, metric, "the gallery")
    assert queries.labels is not None
    if gallery.labels is None:
        raise UserError("per_class needs labels of the gallery, and it has none")
    places = images_by_class(gallery.labels)
    found = np.empty((queries.n, k), dtype=np.int64)
    for label, chosen in images_by_class(queries.labels).items():
        candidates = places.get(label, np.empty(0, dtype=np.int64))
        within, asking = LatentSubset(gallery, candidates), LatentSubset(queries, chosen)
        where = f"class {label} of the gallery"
        local = _nearest_others(asking, within, contents[candidates], own[chosen], k, metric, where)
        found[chosen] = candidates[local]
    return found


def _nearest_others(
    queries: Latents, gallery: Latents, contents: np.ndarray, own: np.ndarray, k: int, metric: Metric, where: str
) -> np.ndarray:  # => int64 [n,k]
    """Return the k nearest of the gallery latents whose ``contents`` [m] are not the query's ``own`` [n]."""
    order = np.argsort(contents, kind="stable")
    first, end = (np.searchsorted(contents[order], own, side) for side in ("left", "right"))
    most = int((end - first).max())
    if gallery.n - most < k:
        besides = ("", " besides the query", " besides copies of the query")[min(most, 2)]
        wanted = "a neighbour" if k == 1 else f"sample_topk={k}"
        raise UserError(f"{where} has {gallery.n - most} latents{besides}, too few for {wanted}: give a larger gallery")
    if most == 0:
        return nearest_latents(queries, gallery, k, metric)
    place = np.where(first < end, order[first.clip(max=gallery.n - 1)], -1)
    nearest = nearest_latents(queries, gallery, k + most - 1, metric, place)  # enough if all other copies are in it
    further = contents[nearest] == own[:, None]
    return np.take_along_axis(nearest, np.argsort(further, axis=1, kind="stable")[:, :k], axis=1)


def _drawn(
    queries: Latents, gallery: Latents, nearest: np.ndarray, rows: np.ndarray, seed: int
) -> np.ndarray:  # [n,k] => [n]
    """Return one of the k nearest of every query, drawn with weights softmax(-mean squared difference)."""
    k = nearest.shape[1]
    if k == 1:
        return nearest[:, 0]
    chances = np.random.default_rng(seed).random(int(rows.max()) + 1)[rows]
    drawn = np.empty(len(nearest), dtype=np.int64)
    for part in queries.slices(32):
        own = queries.take(part).flatten(1).double()
        others = gallery.take(nearest[part].ravel()).flatten(1).double().view(len(own), k, -1)
        weights = torch.softmax(-(others - own[:, None]).square().mean(2), dim=1)
        passed = (weights.cumsum(1).numpy() < chances[part, None]).sum(1)
        drawn[part] = nearest[np.arange(part.start, part.stop), passed.clip(max=k - 1)]
    return drawn


@dataclass(frozen=True)
class _Walk:
    """Queries on the way to their neighbours.

    Attributes:
        queries: latents that start.
        gallery: latents that are headed for.
        neighbours: [n], which one each.
        between: two float64 batches -> where the first has got to.
        decode: latents in the tokenizer's layout -> images.
        shape: (3,H,W) of the images.
    """

    queries: Latents
    gallery: Latents
    neighbours: np.ndarray
    between: Callable[[Tensor, Tensor], Tensor]
    decode: Decode
    shape: tuple[int, int, int]

    def images(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return the decoded interpolants and the reconstructions of the queries of ``part``."""
        start = self.queries.take(part)
        end = self.gallery.take(self.neighbours[part])
        moved = self.between(start, end).to(start.dtype)
        return self._decoded(moved), self._decoded(start)

    def pictures(self) -> np.ndarray:
        """Return reconstruction, interpolant and decoded neighbour of some queries, uint8 [3,m,3,h,w]."""
        part = slice(0, min(_SHOWN, self.queries.n))
        moved, rebuilt = self.images(part)
        ends = self._decoded(self.gallery.take(self.neighbours[part]))
        rows = torch.stack([rebuilt, moved, ends]).clamp(-1, 1).flatten(0, 1).float()
        step = -(-max(self.shape[1:]) // _SHOWN_SIDE)
        small = functional.avg_pool2d(rows, step) if step > 1 else rows
        return ((small + 1) * 127.5).round().byte().unflatten(0, (3, -1)).numpy()

    def _decoded(self, latents: Tensor) -> Tensor:
        return decoded(self.decode, tokenizer_layout(latents), self.shape)


def _features(walk: _Walk, judge: FeatureExtractor, size: int, quantize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of interpolants and of reconstructions, float32 [n,d] each."""
    kinds: tuple[list[Any], list[Any]] = ([], [])
    with progress("iFID", walk.queries.n) as advance:
        for part in walk.queries.slices(size):
            for parts, images in zip(kinds, walk.images(part), strict=True):
                parts.append(judge(as_displayed(images) if quantize else images).float().numpy())
            advance(part.stop - part.start)
    return np.concatenate(kinds[0]), np.concatenate(kinds[1])


def _variant(
    judge: FeatureExtractor,
    searched: _Searched,
    sample_topk: int | None,
    intp: str,
    alpha: float,
    per_class: bool,
    quantize: bool,
) -> str:
    """Return the definition used, in words."""
    which = "top-1" if sample_topk is None else f"one of the top {sample_topk}"
    parts = [
        f"{judge.distance} of {'slerp' if intp == 'slerp' else 'linear'} {alpha:g}",
        f"{which} {'cosine' if intp == 'slerp' else 'L2'} neighbour{' of the class' if per_class else ''}",
        "among these images without itself" if searched.same else f"in a gallery of {searched.latents.n}",
        "8-bit images" if quantize else "images neither clamped nor quantised",
    ]
    return ", ".join(parts)
