"""Latents in two dimensions by UMAP (McInnes, Healy and Melville, arXiv 1802.03426): a picture, no score is attached to it.

Neighbourhoods in the picture mean something; distances between groups, their sizes and densities do not, and another
seed gives another picture of the same latents.
"""

import warnings

import numpy as np
from sklearn.neighbors import NearestNeighbors

from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.latents import Latents


def umap_points(
    latents: Latents, *, n: int = 3000, n_neighbors: int = 15, min_dist: float = 0.1, seed: int = 42
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embed at most ``n`` latents, standardised per channel and flattened, into the plane.

    The same latents and seed give the same points on one machine (one thread); across versions of umap-learn or machines
    only the neighbourhoods agree.

    Args:
        latents: any; the chosen ones are held in memory, the rest is only streamed.
        n: how many to embed, taken evenly from the classes where there are labels.
        n_neighbors: size of the neighbourhood that is kept, at least 3.
        min_dist: how close points may lie in the plane, in [0,1].
        seed: chooses the latents and starts the embedding.

    Returns:
        points float64 [m,2] and their labels int64 [m] (None without labels), in the order of the latents; m <= n.

    Raises:
        UserError: a parameter out of range, too few latents, NaN or infinity, or umap-learn is not installed.
    """
    if n_neighbors < 3:
        raise UserError(f"n_neighbors must be at least 3, got {n_neighbors}")
    if not 0 <= min_dist <= 1:
        raise UserError(f"min_dist must lie in [0, 1], got {min_dist}")
    if min(n, latents.n) <= n_neighbors:
        raise UserError(
            f"UMAP with n_neighbors={n_neighbors} needs more than {n_neighbors} latents, got {min(n, latents.n)}: "
            "give more images, or fewer neighbours"
        )
    chosen = choose_subset(latents.n, latents.labels, n, seed)
    features = latents.moments.standardise(latents.take(chosen)).flatten(1).numpy()
    points = _embed(features, n_neighbors, min_dist, seed)
    return points, None if latents.labels is None else latents.labels[chosen]


def _embed(features: np.ndarray, n_neighbors: int, min_dist: float, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        # About TensorFlow, which is not used, and about how the layout starts: nothing that a reader must know.
        for category in (ImportWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        try:
            from umap import UMAP  # compiles for many seconds when imported
        except ImportError as error:
            raise UserError(
                f"UMAP needs umap-learn, which cannot be imported ({error}): pip install umap-learn"
            ) from error
        mapper = UMAP(
            n_neighbors=n_neighbors,
            min_dist=min_dist,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=_nearest(features, n_neighbors),
        )
        return np.asarray(mapper.fit_transform(features), dtype=np.float64)


def _nearest(features: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and Euclidean distances [m,n_neighbors] of the nearest rows, each row itself first, as UMAP counts.

    UMAP finds the same neighbours, but calls a Python function per pair for sets of this size: ten times as long.
    """
    search = NearestNeighbors(n_neighbors=n_neighbors - 1, algorithm="brute").fit(features)
    distances, indices = search.kneighbors()  # without an argument: itself left out
    itself = np.arange(len(features))
    return np.column_stack([itself, indices]), np.column_stack([np.zeros(len(features)), distances])
