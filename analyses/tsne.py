"""t-SNE of several sets of points side by side (van der Maaten and Hinton, JMLR 9, 2008; scikit-learn's Barnes-Hut version).

An embedding hardly gains from a second thread, so several of them run in processes of one thread each. This module imports no
torch, which every one of those processes would have to load.
"""

from collections.abc import Sequence

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

ALONE = 2000
"""Sets of fewer points than this are embedded before a process has started."""


def embeddings(
    sets: Sequence[np.ndarray], *, perplexity: float, iterations: int, seeds: Sequence[int], workers: int
) -> list[np.ndarray]:
    """Return the embedding in the plane of every set of points [m,c], float64 [m,2]; the same for any number of workers."""
    call = joblib.delayed(_embedding)
    calls = [call(points, perplexity, iterations, seed) for points, seed in zip(sets, seeds, strict=True)]
    few = len(sets) < 2 or len(sets[0]) < ALONE
    return joblib.Parallel(n_jobs=1 if few else min(workers, len(sets)))(calls)


def _embedding(points: np.ndarray, perplexity: float, iterations: int, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    mapper = TSNE(
        n_components=2,
        perplexity=perplexity,
        max_iter=iterations,
        init="pca" if points.shape[1] > 1 else "random",
        learning_rate="auto",
        random_state=seed,
        n_jobs=1,
    )
    with threadpool_limits(1):
        return np.asarray(mapper.fit_transform(points), dtype=np.float64)
