"""Latent uniformity: how evenly single cells of the latents are spread.

``method="tsne"`` is the procedure of VA-VAE (Yao et al., arXiv 2501.01423, ``tools/latent_vis.py``, MIT licence): one random
cell of each of 10,000 images, standardised per channel, embedded into the plane by t-SNE; density CV, Gini coefficient and
normalised entropy of the kernel density at the points (`analyses.point_density`).

``method="sphere"`` needs no embedding. By Archimedes' theorem the uniform distribution on the unit sphere in R^(c+2) projects
to the uniform distribution on the unit ball in R^c. So the cells, whitened and scaled by 1/sqrt(c+2) (a uniform ball then has
radius 1), are lifted: x in R^c becomes (x, s e^(i a)) with s = sqrt(1 - |x|^2) and the angle a uniform; a point outside the ball
goes to its rim. The value is the uniformity potential of Wang and Isola (arXiv 2005.10242, t = 2) of the lifted points, the
angles integrated out, above that of the uniform sphere:

    log mean_{i != j} e^(2t (x_i.x_j - 1)) I_0(2t s_i s_j)  -  log e^(-2t) 0F1(c/2 + 1; t^2)

The uniform distribution is the only one that minimises the potential, so the value is 0 for a uniform ball and positive for
everything else; it grows with whatever is denser than the rest, gaps between clusters included.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import hyp0f1
from torch import Tensor

from analyses.cells import random_cells
from analyses.intervals import bootstrap_means, percentile_interval, rough_interval
from analyses.point_density import Evenness, add_block, evenness, point_density, shares_of_pairs
from analyses.threads import map_in_threads
from latentlab.errors import UserError, unknown_name
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

Method = Literal["tsne", "sphere"]
METHODS = ("tsne", "sphere")

TSNE_REPEATS = 4
"""Each takes about 75 s of processor time for 10,000 cells, shared by the cores."""

TEMPERATURE = 2.0
"""t of Wang and Isola's potential."""

_CLUSTERS = (
    "density CV, Gini and entropy share one kernel bandwidth: well separated clusters count as more even than a uniform square "
    "(method='sphere' does not have this flaw)"
)


@measurement(
    MetricCard(
        name="uniformity",
        title="Latent uniformity",
        summary="how unevenly single cells of the latents are spread: variation of their density in a t-SNE plane",
        formula="std(f) / mean(f), f = Gaussian kernel density (Scott) at the t-SNE points of one random cell per image",
        unit="ratio (tsne) or nats (sphere)",
        range="0 (even) upwards; a uniform square 0.18 and a Gaussian 0.56 at n = 10,000",
        better="lower",
        source="Yao et al., VA-VAE, arXiv 2501.01423, tools/latent_vis.py (10,000 single cells, perplexity 30, 1000 iterations); "
        "4 repeats instead of 10 are our choice; sphere: Wang and Isola, arXiv 2005.10242, lifted by Archimedes' map (ours)",
        confounds="well separated clusters get a LOWER CV than a uniform square, as one bandwidth smooths them over; t-SNE "
        "itself evens densities out, and its result depends on version and platform (hardly on the seed, as it starts from the "
        "principal axes: repeats differ by their cells, and the interval is of that draw, not of the images)",
        variants={
            "method='sphere'": "no embedding: Wang and Isola's potential of the whitened cells above its least value; orders "
            "uniform, Gaussian and clusters rightly and takes seconds",
            "n_points=2000": "fewer cells; changes the bandwidth, so compare equal numbers only",
            "repeats=10": "averages over as many draws of cells and embeddings as VA-VAE's comment speaks of",
            "perplexity=50": "wider neighbourhoods in t-SNE",
            "normalize=False": "raw channels for t-SNE; the sphere whitens anyway",
        },
        invariances="batch size, per-channel shift and positive scale when normalised; of given points in the plane any affine "
        "map; sphere: any affine map of the channels. Another order of the images draws other cells",
        bias="the bandwidth shrinks with n: a uniform square has CV 0.212 at n = 1500 and 0.18 at 10,000; the sphere's value is "
        "up to about 10/n too low",
        known_values={
            "uniform square, n = 1500": "CV 0.212, Gini 0.119, entropy 0.9967",
            "Gaussian, n = 1500": "CV 0.519, Gini 0.299, entropy 0.9784",
            "separated clusters, n = 1500": "CV 0.076, Gini 0.037, entropy 0.9996",
            "small CV": "entropy = 1 - CV^2 / (2 ln n)",
            "sphere, uniform ball": "0",
            "sphere, Gaussian": "0.028 in 2, 0.035 in 8, 0.019 in 32 dimensions",
            "published": "normalised entropy 0.996 to 0.998 (Diffusing in the Right Space)",
        },
        test="tests/analyses/test_uniformity.py::test_typical_values",
    )
)
def uniformity(
    latents: Latents,
    *,
    method: Method = "tsne",
    n_points: int = 10_000,
    repeats: int | None = None,
    perplexity: float = 30.0,
    iterations: int = 1000,
    normalize: bool = True,
    seed: int = 0,
) -> Measurement:
    """Measure how unevenly single cells are spread.

    Args:
        latents: any. Latents of one cell with two channels are points in the plane already: all of them are measured as they
            are, without t-SNE.
        method: ``tsne``, or ``sphere``.
        n_points: at most so many random images, one random cell each; all images where there are fewer.
        repeats: draws of cells (and embeddings) that are averaged; None: 4 for ``tsne``, 1 for ``sphere``.
        perplexity: of t-SNE, at least 1; there must be more points.
        iterations: of t-SNE, at least 250 (scikit-learn's exaggeration phase).
        normalize: standardise each channel over the whole set first.
        seed: draws images and cells and starts t-SNE.

    Returns:
        Density CV (``tsne``), with ``gini`` and ``normalized_entropy`` beside it, or excess potential (``sphere``). Interval:
        bootstrap over repeats (``tsne``; None for one), which differ by the cells that were drawn and not by their images
        where all are used, or over images (``sphere``). ``details`` (``tsne``):
        ``points`` [m,2] and their ``density`` [m] (mean 1) of the first repeat, ``repeats`` [repeats,3].

    Raises:
        UserError: a parameter out of range, too few images, NaN, or cells that do not vary.
    """
    if method not in METHODS:
        raise unknown_name("method", str(method), METHODS)
    times = (TSNE_REPEATS if method == "tsne" else 1) if repeats is None else repeats
    plane = method == "tsne" and latents.shape[0] == 2 and latents.cells == 1
    _check_ranges(min(n_points, latents.n), times, perplexity, iterations, tsne=method == "tsne" and not plane)
    parameters = {"method": method, "n_points": n_points, "normalize": normalize, "seed": seed}
    if method == "sphere":
        return _sphere(latents, times, {**parameters, "repeats": times}, _cautions(latents))
    settings = {**parameters, "repeats": times, "perplexity": perplexity, "iterations": iterations}
    if plane:
        return _in_the_plane([_points_of(latents)], "points in the plane", settings, _cautions(latents))
    draws = _draws(latents, n_points, times, normalize, seed)
    maps = _embedded(draws, perplexity, iterations)
    how = f"t-SNE of single cells, perplexity {perplexity:g}, {'per-channel normalised' if normalize else 'raw'}"
    return _in_the_plane(maps, how, settings, _cautions(latents))


def _check_ranges(n: int, repeats: int, perplexity: float, iterations: int, tsne: bool) -> None:
    if repeats < 1:
        raise UserError(f"repeats must be at least 1, got {repeats}")
    if n < 3:
        raise UserError(f"uniformity needs at least 3 images (and n_points >= 3), got {n}")
    if not tsne:
        return
    if not 1 <= perplexity < n:
        raise UserError(
            f"t-SNE needs 1 <= perplexity < number of points, got perplexity={perplexity:g} and {n} points: give more images, or "
            "a smaller perplexity"
        )
    if iterations < 250:
        raise UserError(f"iterations must be at least 250, got {iterations}")


class _Draw(NamedTuple):
    """The cells of one repeat.

    Attributes:
        images: which images they are of, ascending [m].
        cells: float64 [m,c].
        start: seed for their embedding.
    """

    images: np.ndarray
    cells: Tensor
    start: int


def _draws(latents: Latents, n_points: int, repeats: int, normalize: bool, seed: int) -> list[_Draw]:
    """Draw the cells of every repeat."""
    if not (latents.moments.std > 0).any():
        raise UserError("the latents do not vary at all, so nothing is spread: the latent space collapsed")
    drawn = []
    for repeat in range(repeats):
        random = np.random.default_rng([seed, repeat])
        images = np.sort(random.permutation(latents.n)[:n_points])
        cells = random_cells(latents, images, random, normalize=normalize)
        drawn.append(_Draw(images, cells, int(random.integers(2**31))))
    return drawn


def _points_of(latents: Latents) -> np.ndarray:
    """Return latents of one cell with two channels as points, float64 [n,2]."""
    return torch.cat([batch.flatten(1).double() for batch in latents.batches()]).numpy()


def _embedded(draws: list[_Draw], perplexity: float, iterations: int) -> list[np.ndarray]:
    """Return the t-SNE of the cells [m,c] of every draw, float64 [m,2]."""
    from analyses.tsne import embeddings

    for draw in draws:
        if not bool((draw.cells.amax(0) > draw.cells.amin(0)).any()):
            raise UserError("the drawn cells are all equal, so nothing is spread: the latent space collapsed")
    sets, seeds = [draw.cells.float().numpy() for draw in draws], [draw.start for draw in draws]
    workers = torch.get_num_threads()
    return embeddings(sets, perplexity=perplexity, iterations=iterations, seeds=seeds, workers=workers)


def _cautions(latents: Latents) -> list[str]:
    if latents.spec is not None and latents.spec.discrete:
        return [
            "single cells of a discrete tokenizer repeat the entries of its codebook: their density counts repetitions"
        ]
    return []


def _in_the_plane(maps: list[np.ndarray], how: str, parameters: dict[str, Any], cautions: list[str]) -> Measurement:
    densities = [point_density(points) for points in maps]
    table = np.array([evenness(density) for density in densities])
    varied = len(maps) > 1 and np.ptp(table[:, 0]) > 0
    replicates = bootstrap_means(table, parameters["seed"]) if varied else None
    estimates = [
        Estimate(float(value), None if replicates is None else percentile_interval(replicates[:, i], len(maps)))
        for i, value in enumerate(table.mean(0))
    ]
    cautions.append(_CLUSTERS)
    if replicates is None:
        what = "one repeat only" if len(maps) == 1 else "all repeats saw the same cells"
        cautions.append(f"{what}: an interval over repeats is not possible")
    else:
        cautions += [
            "the interval covers the draw of the cells, not which images were measured",
            *rough_interval(len(maps), "repeats"),
        ]
    return Measurement(
        name="uniformity",
        variant=f"density CV, {how}",
        value=estimates[0].value,
        interval=estimates[0].interval,
        direction="lower",
        unit="ratio",
        n=len(maps[0]),
        parameters=parameters,
        companions=dict(zip(Evenness._fields[1:], estimates[1:], strict=True)),
        warnings=tuple(cautions),
        details={
            "points": np.round(maps[0], 3),
            "density": np.round(densities[0] / densities[0].mean(), 5),
            "repeats": table,
        },
    )  # no replicates: two spaces would be compared by draws of cells instead of images


def _sphere(latents: Latents, repeats: int, parameters: dict[str, Any], cautions: list[str]) -> Measurement:
    draws = _draws(latents, parameters["n_points"], repeats, True, parameters["seed"])
    potentials = [_potential(_whiten(draw.cells)) for draw in draws]
    value = np.mean([mean for mean, _ in potentials])
    influences = _by_image(draws, [influence for _, influence in potentials])
    replicates = np.log((value + bootstrap_means(influences, parameters["seed"])).clip(min=1e-300))
    m, dims = _whiten(draws[0].cells).shape
    return Measurement(
        name="uniformity",
        variant=f"excess potential on the lifted sphere, t = {TEMPERATURE:g}, {dims} whitened channels",
        value=float(np.log(value)),
        interval=percentile_interval(replicates, len(influences)),
        direction="lower",
        unit="nats",
        n=m,
        parameters=parameters,
        warnings=tuple(cautions),
        details={"channels": dims, "least_potential": float(np.log(_least_kernel(dims))) - 2 * TEMPERATURE},
        replicates=replicates,
        units=len(influences),
    )


def _by_image(draws: list[_Draw], influences: list[np.ndarray]) -> np.ndarray:
    """Return the influence on the mean over draws of every image in any of them, [n], of those [m] on the draws' own values.

    A draw's value moves by the mean of its m influences, the mean over r draws so by their sum over images / (r m).
    """
    images, place = np.unique(np.concatenate([draw.images for draw in draws]), return_inverse=True)
    return np.bincount(place, weights=np.concatenate(influences)) * len(images) / len(place)


def _least_kernel(dims: int) -> float:
    """Return the mean of e^(2t u.v) over the uniform sphere in R^(dims+2), the least a distribution on it can have."""
    return float(hyp0f1(dims / 2 + 1, TEMPERATURE**2))


def _whiten(cells: Tensor) -> Tensor:
    """Return cells [m,c] with mean 0 and covariance 1 / (c'+2), [m,c'], in the directions that vary."""
    centred = cells - cells.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / (len(cells) - 1))
    kept = variances > 1e-10 * variances[-1]
    dims = int(kept.sum())
    if not variances[-1] > 0 or len(cells) <= dims + 1:
        raise UserError(
            f"the sphere needs cells that vary, and more of them than channels: got {len(cells)} in {dims} dimensions"
        )
    return centred @ (axes[:, kept] / variances[kept].sqrt()) / (dims + 2) ** 0.5


def _lift(white: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points [m,c] moved into the unit ball, and their heights s [m] above it."""
    ball = white / white.norm(dim=1, keepdim=True).clamp_min(1)
    return ball, (1 - ball.square().sum(1)).clamp_min(1e-30).sqrt()


def _potential(white: Tensor) -> tuple[float, np.ndarray]:
    """Return the mean of e^(2t x.y) I_0(2t s_x s_y) over all pairs of points, over `_least_kernel`, and its influences [m].

    The influence of a point is the derivative of the potential in its weight: its pairs count more, and it moves the mean and the
    covariance that whitened all others, every x by -x_i - ((c+2) x_i x_i^T - 1) x / 2.
    """
    m, dims = white.shape
    points = white.clone().requires_grad_()
    lifted = _lift(points)
    threads = torch.get_num_threads()
    shares = map_in_threads(partial(_pair_sums, *lifted), shares_of_pairs(m, threads), most=threads)
    sums, slopes = (torch.stack(parts).sum(0) for parts in zip(*shares, strict=True))
    own = _kernel(lifted[0].square().sum(1), lifted[1].square())  # every point with itself, which the pairs contain
    torch.autograd.backward([*lifted, own.sum()], [slopes[:, :-1], slopes[:, -1], torch.tensor(-1.0, dtype=own.dtype)])
    sums -= own.detach()
    assert points.grad is not None
    scale = m * (m - 1) * _least_kernel(dims)
    mean, gradient = float(sums.sum() / scale), points.grad / scale
    stretch = white.T @ gradient
    influences = 2 * (sums * m / scale - mean) - white @ gradient.sum(0)
    influences -= ((dims + 2) * ((white @ stretch) * white).sum(1) - stretch.trace()) / 2
    return mean, influences.numpy()


def _pair_sums(ball: Tensor, heights: Tensor, blocks: list[slice]) -> tuple[Tensor, Tensor]:
    """Return the sums of the kernel over the pairs in ``blocks``, by point [m], and the derivative of the total, [m,c+1]."""
    ball, heights = (part.detach().requires_grad_() for part in (ball, heights))
    sums = torch.zeros(len(ball), dtype=torch.float64)
    for rows in blocks:
        kernel = _kernel(ball[rows] @ ball[rows.start :].T, heights[rows, None] * heights[rows.start :])
        add_block(sums, kernel.detach(), rows)
        height = len(kernel)
        (kernel[:, :height].sum() + 2 * kernel[:, height:].sum()).backward()
    assert ball.grad is not None and heights.grad is not None
    return sums, torch.cat([ball.grad, heights.grad[:, None]], dim=1)


def _kernel(product: Tensor, heights: Tensor) -> Tensor:
    """Return e^(2t x.y) I_0(2t s_x s_y) of the products x.y and s_x s_y."""
    bessel = 2 * TEMPERATURE * heights
    return torch.exp(2 * TEMPERATURE * product + bessel) * torch.special.i0e(bessel)
