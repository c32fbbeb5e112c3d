"""Decoder sensitivity: how much the decoded image changes when noise is added to its latent.

A generator's latents are never exact. A decoder that amplifies small errors spoils the samples of a latent space that may
be easy to learn otherwise, so this is a confounder of generation quality (gFID), to be reported beside every correlation,
and not a difficulty of the latent space itself. With D the decoder, s the channel standard deviations of the whole set and
e standard normal, at the noise level sigma:

    pixels(sigma)   = sqrt(mean over images and pixels of (D(z + sigma s e) - D(z))^2)
    features(sigma) = sqrt(mean |f(D(z + sigma s e)) - f(D(z))|^2 / mean |f(D(z)) - mean f|^2)

and the mean perceptual distance of the two. Both images are decoded: the change is that of the reconstruction, not of the
original. A linear decoder A has pixels(sigma) = sigma |A diag(s)|_F / sqrt(pixels).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyses.decoding import Decode, decoded
from analyses.intervals import bootstrap_means, percentile_band, percentile_interval
from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.latents import Latents, tokenizer_layout
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.randomness import generator
from latentlab.registry import measurement

HEADLINE_LEVEL = 0.1
"""Noise of the headline, in channel standard deviations: small enough for most decoders to be nearly linear."""

LEVELS = (0.02, 0.05, HEADLINE_LEVEL, 0.2, 0.5, 1.0)

_BATCH = 32
"""Images decoded and compared at a time."""

_ROUNDING = 1e-12
"""Features that vary by a smaller share of their square do not vary."""

Images = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Judge:
    """What compares decoded images besides their pixels.

    Attributes:
        distance: two batches of images [b,3,H,W] in [-1,1] -> perceptual distances [b], or None.
        features: images -> features [b,...], or None.
        names: what the numbers are called: ``perceptual`` and ``features``, where there are such.
        device: where both want their images.
    """

    distance: Distance | None
    features: Images | None
    names: Mapping[str, str]
    device: str

    def describe(self, images: Tensor) -> Tensor:
        """Return the features of ``images``, float64 [b,d]; d = 0 without an extractor."""
        if self.features is None:
            return torch.empty(len(images), 0, dtype=torch.float64)
        return self.features(images.to(self.device)).flatten(1).to("cpu", torch.float64)

    def compare(self, changed: Tensor, clean: Tensor, described: Tensor) -> dict[str, Tensor]:
        """Return the changes from ``clean`` images, whose features are ``described``, to ``changed`` ones, float64 [b] each."""
        found = {"pixels": (changed.double() - clean.double()).square().flatten(1).mean(1)}
        if self.distance is not None:
            distance = self.distance(changed.to(self.device), clean.to(self.device))
            found["perceptual"] = distance.flatten().to("cpu", torch.float64)
        if self.features is not None:
            found["features"] = (self.describe(changed) - described).square().sum(1)
        return found


@dataclass(frozen=True)
class _Curve:
    """A change at every level, [L], with its bootstrap replicates [1000,L] over n images (none for a single one)."""

    values: np.ndarray
    replicates: np.ndarray
    n: int

    def at(self, index: int) -> Estimate:
        """Return the change at one level."""
        own = self.replicates[:, index]
        return Estimate(float(self.values[index]), percentile_interval(own, self.n) if len(own) else None)

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """Return the columns for figures, ``name`` and its band."""
        if not len(self.replicates):
            return {name: self.values}
        low, high = percentile_band(self.replicates, self.n)
        return {name: self.values, f"{name}_low": low, f"{name}_high": high}


@measurement(
    MetricCard(
        name="sensitivity",
        title="Decoder sensitivity",
        summary="how much the decoded image changes per unit of noise on the standardised latents",
        formula="sqrt(mean_{images, pixels} (D(z + sigma s e) - D(z))^2) / sigma,  s = std per channel, e ~ N(0, I), "
        "sigma = 0.1",
        unit="pixel RMS in [-1,1] per channel std",
        range="0 upwards; a linear decoder A: |A diag(s)|_F / sqrt(number of pixels), whatever sigma",
        better="lower",
        source="definition ours: a confounder of generation quality, to be held fixed when latent spaces are correlated with it",
        needs=("decode",),
        confounds="it says nothing about how hard the latents are to learn: lower means that a generator's errors show less; "
        "clipping of the decoder at black and white hides changes; latents with a code book or on a sphere leave it",
        variants={
            "level=0.05": "noise of the headline",
            "levels=(0.1, 1)": "noise levels of the curves",
            "perceptual='st_lpips'": "which perceptual distance; None for none",
            "extractor=None": "which features are compared; None for none",
        },
        invariances="scale and shift of each latent channel when the decoder undoes them; order of the channels in distribution",
        known_values={"linear decoder x = A z + b": "|A diag(s)|_F / sqrt(number of pixels)"},
        test="tests/analyses/test_sensitivity.py::test_linear_decoder_has_a_closed_form",
    )
)
def sensitivity(
    latents: Latents,
    *,
    decode: Decode,
    level: float = HEADLINE_LEVEL,
    levels: tuple[float, ...] = LEVELS,
    perceptual: str | Distance | None = "auto",
    extractor: str | Images | None = "efficientnet-lite0",
    limit: int | None = 128,
    seed: int = 0,
    device: str = "cpu",
) -> Measurement:
    """Measure how decoded images change when noise is added to their latents.

    Args:
        latents: a grid or 1-D tokens; channel standard deviations are those of the whole set.
        decode: latents [b,c,h,w] or [b,l,c] -> images [b,3,H,W] in about [-1,1]. Code vectors of a discrete tokenizer are
            decoded with the noise on them; most do so without looking up the nearest code (``mind`` cannot).
        level: noise of the headline in units of the channel standard deviation.
        levels: noise levels of the curves; that of the headline is added.
        perceptual: name for `perceptual_distance`, a function of two batches of images, or None.
        extractor: name for `feature_extractor`, a function of images [b,3,H,W] in [-1,1], or None.
        limit: at most this many images, balanced over classes; None for all.
        seed: chooses the images that ``limit`` keeps; of the noise (a function of seed, level and place of the image in the
            set alone) and of the bootstrap.
        device: where the perceptual distance and the features are computed.

    Returns:
        RMS change of the pixels divided by ``level``; perceptual and feature change at ``level`` beside it. Interval:
        bootstrap over images. ``details``: ``levels`` and, one per level, ``pixels``, ``perceptual`` and ``features`` with
        ``_low`` and ``_high`` (pixels: RMS, not divided by the level); ``perceptual_name``, ``features_name``.

    Raises:
        UserError: a level that is not positive, latents that do not vary or are not finite, or a decoder that gives no
            images or NaN.
    """
    every = _checked_levels(level, levels)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")
    if not latents.moments.std.any():
        raise UserError("latents do not vary at all, so there is no unit for the noise: the latent space collapsed")
    judge = _judge(perceptual, extractor, device)
    rows = choose_subset(latents.n, latents.labels, limit, seed)
    curves = _curves(_measure_changes(latents, rows, decode, judge, every, seed), seed)
    at, pixels = every.index(level), curves["pixels"]
    slope = _Curve(pixels.values / level, pixels.replicates / level, pixels.n)
    names = {key: name for key, name in judge.names.items() if key in curves}
    return Measurement(
        name="sensitivity",
        variant=f"pixel RMS per unit of noise, at {level:g} channel std",
        value=slope.at(at).value,
        interval=slope.at(at).interval,
        replicates=slope.replicates[:, at] if len(rows) > 1 else None,
        direction="lower",
        unit="pixel RMS in [-1,1] per channel std",
        n=len(rows),
        parameters={
            "level": level,
            "levels": every,
            "perceptual": judge.names.get("perceptual"),
            "extractor": judge.names.get("features"),
            "limit": limit,
            "seed": seed,
        },
        companions={f"{name} at {level:g}": curves[key].at(at) for key, name in names.items()},
        warnings=_cautions(latents, len(rows), absent=set(judge.names) - set(names), unmoved=not pixels.values[at]),
        details={
            "levels": np.array(every),
            **{column: values for key, curve in curves.items() for column, values in curve.columns(key).items()},
            **{f"{key}_name": name for key, name in names.items()},
        },
    )


def _checked_levels(level: float, levels: Sequence[float]) -> list[float]:
    """Return all levels, rising, that of the headline among them."""
    every = sorted({float(level), *map(float, levels)})
    if not all(0 < value < np.inf for value in every):
        raise UserError(f"noise levels must be positive numbers, got {every}")
    return every


def _measure_changes(
    latents: Latents, rows: np.ndarray, decode: Decode, judge: _Judge, levels: Sequence[float], seed: int
) -> dict[str, np.ndarray]:
    """Decode the latents at ``rows`` without noise and with every level of it; return the changes by name, [m,L] each.

    ``pixels`` are mean squares, ``features`` squared distances in units of the mean squared distance from the mean feature;
    they are left out where all images have the same features.
    """
    tables: dict[str, list[Tensor]] = {}
    total, squares = torch.zeros((), dtype=torch.float64), 0.0
    with torch.inference_mode():
        for part in np.split(rows, range(_BATCH, len(rows), _BATCH)):
            batch = latents.take(part)
            clean = decoded(decode, tokenizer_layout(batch))
            described = judge.describe(clean)
            total, squares = total + described.sum(0), squares + float(described.square().sum())
            changes = []
            for level in levels:
                noisy = batch + _noise(latents, part, level, seed).to(batch)
                changed = decoded(decode, tokenizer_layout(noisy))
                changes.append(judge.compare(changed, clean, described))
            for key in changes[0]:
                tables.setdefault(key, []).append(torch.stack([change[key] for change in changes], dim=1))
    found = {key: torch.cat(parts).numpy() for key, parts in tables.items()}
    if "features" in found:
        spread = squares / len(rows) - float((total / len(rows)).square().sum())
        if spread > _ROUNDING * squares / len(rows):
            found["features"] /= spread
        else:
            del found["features"]
    return found


def _noise(latents: Latents, rows: np.ndarray, level: float, seed: int) -> Tensor:
    """Return noise of ``level`` channel standard deviations for the latents at ``rows``, float64 [b,c,...]."""
    draws = [
        torch.randn(latents.shape, generator=generator(seed, "sensitivity", repr(level), int(row)), dtype=torch.float64)
        for row in rows
    ]
    return level * latents.moments.std.view(-1, *[1] * (len(latents.shape) - 1)) * torch.stack(draws)


def _curves(changes: Mapping[str, np.ndarray], seed: int) -> dict[str, _Curve]:
    """Return the change at every level by name, all with the same resamplings of the images."""
    found = {}
    for key, table in changes.items():
        replicates = bootstrap_means(table, seed) if len(table) > 1 else np.empty((0, table.shape[1]))
        scale = (lambda means: means) if key == "perceptual" else np.sqrt  # squares become roots of mean squares
        found[key] = _Curve(scale(table.mean(0)), scale(replicates), len(table))
    return found


def _cautions(latents: Latents, n: int, absent: Collection[str], unmoved: bool) -> tuple[str, ...]:
    """Return what limits this very result."""
    said = []
    if unmoved:
        said.append(
            "noise of this level changes nothing: the decoder takes every vector for the nearest code, or ignores latents; "
            "see larger levels"
        )
    elif latents.has_codes or (latents.spec is not None and latents.spec.discrete):
        said.append(
            "discrete tokenizer: the noise is on the code vectors, which are decoded without looking up a code again"
        )
    if constant := int((latents.moments.std == 0).sum()):
        said.append(f"{constant} of {latents.channels} channels are constant and get no noise")
    if absent:
        said.append("all decoded images have the same features: their change has no unit and is left out")
    if n < 2:
        said.append("one image only: an interval over images is not possible")
    return tuple(said)


def _judge(perceptual: str | Distance | None, extractor: str | Images | None, device: str) -> _Judge:
    """Build what was asked for; the networks are imported only then."""
    names = {}
    distance, features = None, None
    if perceptual is not None:
        from latentlab.quality.perceptual import perceptual_distance

        distance = perceptual_distance(perceptual, device) if isinstance(perceptual, str) else perceptual
        names["perceptual"] = str(getattr(distance, "name", "given distance"))
    if extractor is not None:
        from latentlab.quality.features import feature_extractor

        features = feature_extractor(extractor, device)
        names["features"] = f"{features.name} features"
    return _Judge(distance, features, names, device)
