"""How a discrete tokenizer uses its codebook: shares of the codes, their entropy, and the angles between their vectors.

With p_v the share of code v among all tokens:

    entropy H = -sum p log2 p;   perplexity = 2^H;   effective vocabulary = 1 / sum p^2
    Miller and Madow (1955):  H + (used codes - 1) / (2 tokens ln 2)  removes the first-order bias of few tokens

Entropy and perplexity weigh codes by use, so that rare ones hardly count; the effective vocabulary (Hill number of order 2) is
the number of equally frequent codes that meet each other as often as these do, estimated without bias from pairs of tokens.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import SHARE, bootstrap_means, percentile_interval
from analyses.neighbours import nearest
from latentlab.errors import UserError
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.registry import measurement

_TABLE = 1 << 24
"""Numbers in one table of counts [positions,v]: positions that do not fit are counted in a further pass over the codes."""

_CURVE = 512
"""Ranks that are kept of the rank-frequency curve, evenly in the logarithm."""

_SAME = 1e-4
"""Latents of one code that differ by more than this share of their size are not the code's vector."""


@measurement(
    MetricCard(
        name="codebook",
        title="Codebook statistics",
        summary="share of its codebook that a discrete tokenizer uses effectively, with entropies and angles between codes",
        formula="2^H / v,  H = -sum p log2 p over the v codes, p = share among all tokens",
        unit="fraction",
        range="1/v (one code) to 1 (all codes equally often)",
        better="none",
        source="perplexity of the codes as in van den Oord et al., VQ-VAE, arXiv 1711.00937; divided by the vocabulary, so that "
        "codebooks of different size compare (our choice: usage alone saturates at 1). Well used codebooks reconstruct "
        "better, but are not known to be easier to generate, hence no direction",
        needs=("codes",),
        confounds="number of tokens (few cannot use many codes), data set, vocabulary size",
        variants={
            "vocabulary=16384": "number of codes, where neither a codebook nor the tokenizer's specification says it",
            "codebook=vectors": "code vectors [v,c] for the angles; otherwise those of the used codes are read off the latents",
        },
        invariances="batch size, order of the images, any renumbering of the codes; the value also the order of the cells",
        bias="entropy is too low by about (used codes - 1) / (2 tokens ln 2) bits, usage and perplexity with it; the entropy at "
        "one position is at most log2 n",
        known_values={
            "all codes equally often": "1; entropy log2 v",
            "one code": "1/v; entropy 0",
            "shares 1/2, 1/4, 1/4 of v = 4": "entropy 1.5 bits, perplexity 2.8284, value 0.7071",
            "orthogonal code vectors": "nearest angle 90 degrees, mean cosine 0",
        },
        test="tests/analyses/test_codebook.py::test_shares_with_a_closed_form",
    )
)
def codebook(
    latents: Latents, *, codebook: Tensor | None = None, vocabulary: int | None = None, seed: int = 0
) -> Measurement:
    """Count codes, in passes over them that need constant memory, and measure the angles between code vectors exactly.

    Args:
        latents: with codes.
        codebook: code vectors [v,c]. Without them the vectors of the used codes are read off the latents.
        vocabulary: number of codes; None: rows of ``codebook``, else what the latents' tokenizer says.
        seed: of the bootstrap over images.

    Returns:
        Perplexity over vocabulary. Interval: bootstrap over images, to first order in the shares. ``companions``: usage,
        perplexity, entropies (plug-in, Miller-Madow, over log2 v, mean over positions), effective vocabulary; mean and least
        angle to the nearest other code and mean cosine of all pairs, where vectors are known. ``details``: ``ranks`` and
        ``frequency`` (shares by rank), ``position_entropy`` [h,w] or [l].

    Raises:
        UserError: no codes, codes outside the vocabulary, an unknown vocabulary, or a codebook that does not fit.
    """
    v = _vocabulary(latents, codebook, vocabulary)
    counts, position_entropy = _count(latents, v)
    tokens, used = int(counts.sum()), int((counts > 0).sum())
    share = counts / tokens
    entropy = _entropy(share)
    replicates = None
    if latents.n > 1:  # to first order, the entropy of resampled images is the mean of their cells' -log2 p
        replicates = 2 ** bootstrap_means(_surprisal(latents, share), seed) / v
    angles = _angles(latents, codebook, counts)
    return Measurement(
        name="codebook",
        variant=f"perplexity over vocabulary ({v} codes)",
        value=2**entropy / v,
        interval=None if replicates is None else percentile_interval(replicates, latents.n, SHARE),
        direction="none",
        unit="fraction",
        n=latents.n,
        parameters={"vocabulary": v, "seed": seed},
        companions={
            "usage": Estimate(used / v),
            "perplexity": Estimate(2**entropy),
            "entropy_bits": Estimate(entropy),
            "entropy_bits_miller_madow": Estimate(entropy + (used - 1) / (2 * tokens * math.log(2))),
            "normalized_entropy": Estimate(entropy / math.log2(v) if v > 1 else 1.0),
            "effective_vocabulary": Estimate(_effective(counts)),
            "mean_position_entropy_bits": Estimate(float(position_entropy.mean())),
            **angles.companions,
        },
        warnings=(*_cautions(latents.n, tokens, used, v), *angles.warnings),
        details={**_rank_frequency(share), "position_entropy": position_entropy, "vocabulary": v, "tokens": tokens},
        replicates=replicates,
    )


def _vocabulary(latents: Latents, codebook: Tensor | None, asked: int | None) -> int:
    if not latents.has_codes:
        raise UserError("codebook needs codes, and these latents have none: only discrete tokenizers have them")
    if codebook is not None and (codebook.ndim != 2 or not torch.isfinite(codebook).all()):
        raise UserError(f"codebook must be finite vectors [v,c], got shape {list(codebook.shape)}")
    if codebook is not None and asked not in (None, len(codebook)):
        raise UserError(f"vocabulary={asked} contradicts the codebook of {len(codebook)} vectors: leave it out")
    known = len(codebook) if codebook is not None else asked
    if known is None and latents.spec is not None:
        known = latents.spec.codebook_size
    if known is None:
        raise UserError("the number of codes is not known: give vocabulary=..., or the codebook")
    if known < 1:
        raise UserError(f"vocabulary must be at least 1, got {known}")
    return known


def _codes(latents: Latents) -> Iterator[Tensor]:
    """Yield the codes of all images, int64 [b,positions]."""
    for part in latents.slices():
        yield latents.codes(part).flatten(1)


def _count(latents: Latents, v: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often every code occurs, [v], and the entropy of the codes at every position in bits, [h,w] or [l]."""
    shape = latents.codes(slice(0, 1)).shape[1:]
    positions = int(np.prod(shape))
    total = np.zeros(v, dtype=np.int64)
    entropies = np.empty(positions)
    step = max(1, _TABLE // v)
    for start in range(0, positions, step):
        part = slice(start, min(start + step, positions))
        table = torch.zeros((part.stop - start) * v, dtype=torch.int64)
        rows = v * torch.arange(part.stop - start)
        for codes in _codes(latents):
            _check(codes, v)
            keys = (codes[:, part] + rows).flatten()
            table.index_add_(0, keys, torch.ones_like(keys))
        counts = table.view(-1, v).numpy()
        total += counts.sum(0)
        entropies[part] = [_entropy(row / latents.n) for row in counts]
    return total, entropies.reshape(shape)


def _check(codes: Tensor, v: int) -> None:
    low, high = (int(end) for end in torch.aminmax(codes))
    if low < 0 or high >= v:
        raise UserError(f"codes must lie between 0 and vocabulary - 1 = {v - 1}, found {low if low < 0 else high}")


def _entropy(share: np.ndarray) -> float:
    """Return the entropy of shares in bits."""
    positive = share[share > 0]
    return float(-(positive @ np.log2(positive))) + 0.0  # +0.0: never -0


def _effective(counts: np.ndarray) -> float:
    """Return 1 / sum p^2, with the unbiased estimate of the sum; NaN when no two tokens share a code."""
    tokens = counts.sum()
    pairs = float((counts * (counts - 1.0)).sum())
    return float(tokens * (tokens - 1.0)) / pairs if pairs > 0 else np.nan


def _surprisal(latents: Latents, share: np.ndarray) -> np.ndarray:
    """Return the mean of -log2 p over the tokens of every image, [n]."""
    bits = torch.from_numpy(-np.log2(np.where(share > 0, share, 1.0)))
    return torch.cat([bits[codes].mean(1) for codes in _codes(latents)]).numpy()


def _rank_frequency(share: np.ndarray) -> dict[str, np.ndarray]:
    """Return ranks from 1 and the shares of the codes at these ranks, of used codes only."""
    falling = np.sort(share[share > 0])[::-1]
    ranks = np.unique(np.geomspace(1, len(falling), _CURVE).round().astype(int))
    return {"ranks": ranks, "frequency": falling[ranks - 1]}


class _Angles(NamedTuple):
    companions: dict[str, Estimate]
    warnings: tuple[str, ...] = ()


def _angles(latents: Latents, codebook: Tensor | None, counts: np.ndarray) -> _Angles:
    """Return the angles between all code vectors, or between those of the used codes where no codebook is given."""
    vectors = _vectors_in_latents(latents, counts) if codebook is None else codebook.double()
    if vectors is None:
        return _Angles({}, ("no angles: the latents are not the vectors of their codes; give the codebook",))
    directed = vectors[vectors.norm(dim=1) > 0]
    if len(directed) < 2:
        return _Angles({}, ("no angles: fewer than two code vectors have a direction",))
    unit = directed / directed.norm(dim=1, keepdim=True)
    closest = unit[torch.from_numpy(nearest(unit, unit, 1, "cosine", exclude_self=True)[:, 0])]
    # 2 asin(|u - v| / 2) keeps the digits of small angles that acos(u.v) loses.
    angle = torch.rad2deg(2 * ((unit - closest).norm(dim=1) / 2).clamp_max(1).asin())
    m = len(unit)
    cosine = (float(unit.sum(0).square().sum()) - m) / (m * (m - 1))
    companions = {
        "mean_nearest_angle_degrees": Estimate(float(angle.mean())),
        "least_nearest_angle_degrees": Estimate(float(angle.min())),
        "mean_cosine": Estimate(cosine),
    }
    said = [f"{len(vectors) - m} code vectors are zero and have no angle"] if m < len(vectors) else []
    if codebook is None:
        said.append(f"angles are those of the {len(vectors)} used codes, read off the latents")
    return _Angles(companions, tuple(said))


def _vectors_in_latents(latents: Latents, counts: np.ndarray) -> Tensor | None:
    """Return the vectors of the used codes, float64 [used,c], or None if the latents at one code differ."""
    if int(np.prod(latents.codes(slice(0, 1)).shape[1:])) != latents.cells:
        return None
    table = torch.zeros(len(counts), latents.channels, dtype=torch.float64)
    known = torch.zeros(len(counts), dtype=torch.bool)
    for part in latents.slices():
        vectors = latents.take(part).flatten(2).transpose(1, 2).flatten(0, 1).double()
        codes = latents.codes(part).flatten()
        fresh = ~known[codes]
        table[codes[fresh]] = vectors[fresh]
        known[codes] = True
        if not (vectors - table[codes]).abs().max() <= _SAME * vectors.abs().max():
            return None
    return table[known]


def _cautions(n: int, tokens: int, used: int, v: int) -> list[str]:
    said = []
    if tokens < 10 * v:
        said.append(f"{tokens} tokens for {v} codes: usage, entropy and perplexity are too low")
    if used == 1:
        said.append("all tokens are one code: the codebook collapsed")
    if n < 2:
        said.append("one image only: an interval over images is not possible")
    return said
