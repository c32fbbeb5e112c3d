"""LNC, latent neighbour consistency: how many of an image's nearest neighbours in latent space have its label.

Definition: Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578), "fraction of each latent's K nearest neighbours
sharing its label", each latent reduced to the mean over its foreground cells:

    f_n = sum_cells mask z / sum mask  in R^c ;   LNC@k = mean_n (1/k) #{ j in kNN(n) : y_j = y_n }

The paper leaves open k, the distance, the normalisation and how a mask reaches the latent grid: each is an option here.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import SHARE, bootstrap_means, share_interval
from analyses.neighbours import METRICS, Metric, nearest
from analyses.pooling import MASK_MODES, MaskMode, masked_means
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

COMPANIONS = (5, 10)
"""Neighbourhood sizes that are always reported, so that results with different headlines can be compared."""


@measurement(
    MetricCard(
        name="lnc",
        title="Latent neighbour consistency",
        summary="share of an image's k nearest neighbours in latent space that show the same class",
        formula="mean_n (1/k) #{ j in kNN(n) : y_j = y_n },  f_n = mean of the foreground cells of latent n",
        unit="fraction",
        range="0 (no neighbour of the same class) to 1; at most the mean of min(1, (n_c - 1)/k)",
        better="higher",
        source="Zhong et al., Diffusing in the Right Space, arXiv 2606.03578; k = 5, cosine distance, per-channel "
        "normalisation and nearest-neighbour masks are our choice where the paper is silent; so is the interval, in which an "
        "image counts as a neighbour of others too",
        needs=("labels",),
        uses="masks, to average over the foreground",
        confounds="images per class (small classes cap it), number of classes, masks, and a channel offset shared by all "
        "images when not normalised",
        variants={
            "k=10": "ten neighbours instead of five (always reported beside the headline)",
            "metric='l2'": "Euclidean instead of cosine distance",
            "mask='maxpool'": "a cell is foreground as soon as one of its pixels is; dilutes small objects",
            "mask='none'": "mean over all cells",
            "normalize=False": "raw latents",
            "center=True": "the mean feature of the set is subtracted first",
        },
        invariances="batch size, order of the images (ties aside), per-channel shift and positive scale when normalised, any "
        "rearrangement of the cells without masks",
        bias="grows with the images per class: more of them lie nearby",
        known_values={
            "perfectly tight, separated classes of n images": "min(1, (n-1)/k); 4 classes of 5: 1, 1, 0.5 for k = 1, 4, 8",
            "random labels": "(n_c-1)/(n-1) in expectation",
            "published": "r = 0.993 with linear probing over 43 tokenizers (Diffusing in the Right Space)",
        },
        test="tests/analyses/test_lnc.py::test_tight_separated_classes",
    )
)
def lnc(
    latents: Latents,
    *,
    k: int = 5,
    metric: Metric = "cosine",
    mask: MaskMode | None = None,
    normalize: bool = True,
    center: bool = False,
    seed: int = 0,
) -> Measurement:
    """Measure latent neighbour consistency; every image is a query and a candidate, but not its own neighbour.

    Args:
        latents: with labels; with masks where there are some.
        k: neighbours of the headline; LNC@5 and LNC@10 are reported beside it.
        metric: ``cosine`` or ``l2``. Under cosine a zero vector has similarity 0 to every vector.
        mask: how image masks reach the latent grid: ``nearest`` or ``maxpool`` (any pixel of the cell), or ``none``: all
            cells count. None means ``nearest`` where there are masks, else ``none``. 1-D tokens are averaged over all.
        normalize: standardise each channel over the whole set first.
        center: subtract the mean feature of the set before looking for neighbours (matters for cosine only).
        seed: of the bootstrap over images.

    Returns:
        Fraction in [0, 1]; images with an empty mask are left out and counted. Interval: bootstrap over images of their
        influences, as images and as neighbours. ``details``: ``per_class`` {label: value}, ``ceiling`` (largest value the class
        sizes allow), ``chance`` (expectation under random labels).

    Raises:
        UserError: no labels, no class with 2 images, k not below the number of images, masks asked for but absent, non-finite
            latents, or features that are all equal.
    """
    if latents.labels is None:
        raise UserError("lnc needs labels, and these latents have none")
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    mode, warnings = _mask_mode(latents, mask)
    features, kept = _features(latents, k, mode, normalize, center)
    dropped = latents.n - len(kept)
    if dropped:
        warnings.append(f"{dropped} of {latents.n} images have an empty mask and were left out")
    labels = latents.labels[kept]
    if len(np.unique(labels)) == len(labels):
        raise UserError(f"lnc needs a class with at least 2 images: all {len(labels)} classes have one")
    sizes = [size for size in sorted({*COMPANIONS, k}) if size < len(labels)]
    neighbours = nearest(features, features, min(max(sizes) + 1, len(labels) - 1), metric, exclude_self=True)
    same = labels[neighbours] == labels[:, None]
    fractions = {size: same[:, :size].mean(1) for size in sizes}
    values = np.array([f.mean() for f in fractions.values()])
    influences = np.stack([_influences(same, neighbours, size) for size in sizes], axis=1)
    replicates = (values + bootstrap_means(influences, seed)).clip(*SHARE).T
    estimates = {
        size: Estimate(float(value), share_interval(r, len(labels)))
        for size, value, r in zip(sizes, values, replicates, strict=True)
    }
    details = _details(fractions[k], labels, k)
    return Measurement(
        name="lnc",
        variant=_variant(latents, k, metric, mode, normalize, center),
        value=estimates[k].value,
        interval=estimates[k].interval,
        direction="higher",
        unit="fraction",
        n=len(labels),
        parameters={"k": k, "metric": metric, "mask": mode, "normalize": normalize, "center": center, "seed": seed},
        companions={f"LNC@{size}": estimates[size] for size in COMPANIONS if size in estimates},
        warnings=(*warnings, *_cautions(features, labels, k, metric, details)),
        details=details,
        replicates=replicates[sizes.index(k)],
    )


def _mask_mode(latents: Latents, asked: MaskMode | None) -> tuple[MaskMode, list[str]]:
    """Return the mask mode to use, and what to say about it."""
    if asked is not None and asked not in MASK_MODES:
        raise unknown_name("mask mode", asked, MASK_MODES)
    if latents.grid is None:
        ignored = latents.has_masks or asked not in (None, "none")
        return "none", ["1-D tokens have no place in the image: masks were ignored"] if ignored else []
    if asked not in (None, "none") and not latents.has_masks:
        raise UserError(f"mask='{asked}' needs masks, and these latents have none: give masks or use mask='none'")
    return asked or ("nearest" if latents.has_masks else "none"), []


def _features(latents: Latents, k: int, mode: MaskMode, normalize: bool, center: bool) -> tuple[Tensor, np.ndarray]:
    """Return the features of the images with a foreground, float64 [m,c], and the indices of these images."""
    means, counts = masked_means(latents, mode)
    kept = torch.nonzero(counts > 0).flatten()
    features = means[kept]
    if not 1 <= k < len(kept):
        raise UserError(f"lnc needs 1 <= k < number of images, got k={k} and {len(kept)} images with a foreground")
    if _collapsed(features):
        raise UserError(
            "all latents have the same mean, so no image is nearer than another: the latent space collapsed"
        )
    if normalize:  # standardising is affine per channel, so it may follow the mean over cells
        features = latents.moments.standardise(features)
    if center:
        features = features - features.mean(0)
    return features, kept.numpy()


def _collapsed(features: Tensor) -> bool:
    """Return whether the features differ in no channel by more than the rounding of float32 latents."""
    spread = features.amax(0) - features.amin(0)
    return bool((spread <= 4 * torch.finfo(torch.float32).eps * features.abs().amax(0)).all())


def _influences(same: np.ndarray, neighbours: np.ndarray, k: int) -> np.ndarray:
    """Return the influence of every image on LNC@k, [n], whose mean is 0.

    An image counts by its own neighbours, and as a neighbour of others; resampling the images' own shares misses the second
    and has 2/3 of the standard deviation: intervals that hold the mean of repeated samples in 80 % of them, with both in 94 to
    99 %. The second is the infinitesimal jackknife (Jaeckel 1972; Efron, The Jackknife, the Bootstrap and Other Resampling
    Plans, 1982, chapter 6) of p_j, the share of its label among the k + 1 nearest of image j as a weighted mean; the (k+1)-th
    belongs to them, as it moves up when another is left out:

        share_i - LNC + sum_{j: i among the k + 1 nearest of j} ([y_i = y_j] - p_j) / (k + 1)

    Args:
        same: whether the neighbours have the label of the image, bool [n,K], the nearest first.
        neighbours: which images they are, [n,K].
        k: at most K; where all other images are neighbours, none moves up.
    """
    near = same[:, : k + 1]
    lent = (near - near.mean(1, keepdims=True)) / near.shape[1]
    as_neighbour = np.bincount(neighbours[:, : k + 1].ravel(), weights=lent.ravel(), minlength=len(same))
    share = same[:, :k].mean(1)
    return share - share.mean() + as_neighbour


def _details(fractions: np.ndarray, labels: np.ndarray, k: int) -> dict[str, Any]:
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    per_class = np.bincount(inverse, weights=fractions) / sizes
    n = len(labels)
    return {
        "per_class": {int(label): float(value) for label, value in zip(classes, per_class, strict=True)},
        "ceiling": float(np.minimum(1.0, (sizes - 1) / k) @ sizes / n),
        "chance": float((sizes - 1) @ sizes / (n * (n - 1))),
    }


def _cautions(features: Tensor, labels: np.ndarray, k: int, metric: str, details: dict[str, Any]) -> list[str]:
    """Return what limits this very result."""
    said = []
    if details["ceiling"] < 1:
        said.append(f"classes with at most {k} images cap LNC@{k} at {details['ceiling']:.4f}")
    if len(details["per_class"]) == 1:
        said.append("all images have one label: LNC is 1 whatever the latents are")
    if len(labels) <= max(COMPANIONS):
        said.append(f"LNC@{max(COMPANIONS)} needs more than {max(COMPANIONS)} images")
    zeros = int((features == 0).all(1).sum())
    if zeros and metric == "cosine":
        said.append(
            f"{zeros} images have a zero feature, which has no direction: their similarity to all others counts as 0"
        )
    return said


def _variant(latents: Latents, k: int, metric: str, mode: MaskMode, normalize: bool, center: bool) -> str:
    """Return the definition used, in words."""
    where = {
        "nearest": "mean over foreground cells (nearest mask)",
        "maxpool": "mean over foreground cells (max-pooled mask)",
        "none": "mean over all cells" if latents.grid else "mean over tokens",
    }[mode]
    parts = [f"LNC@{k}", f"{metric} distance", where, "per-channel normalised" if normalize else "raw"]
    return ", ".join([*parts, "centred"] if center else parts)
