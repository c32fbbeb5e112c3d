"""Affine equivariance: does turning, resizing or mirroring an image do the same to its latent?

Definition: Kouzelis et al., "EQ-VAE" (arXiv 2502.09509), appendix C.3; the metric has no published code:

    Delta_T = 1/(|T| n) sum_{tau in T, images x} |tau E(x) - E(tau x)|^2 / |E(tau x)|^2

The ratio is taken per image, with the encoded transformed image below the line. T_rotate are the turns by 90, 180 and 270
degrees, T_scale the resizes to 0.25, 0.5 and 0.75 of the side. They are reported apart: turning moves pixels and loses nothing,
whereas resizing without antialiasing skips pixels, so that part of any scale error is the transform's, not the encoder's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from analyses.affine import INTERPOLATIONS, KINDS, Interpolation, Kind, Transform, transforms_of
from analyses.decoding import Encode, encoded
from analyses.intervals import bootstrap_means, percentile_interval
from latentlab.data.subset import choose_subset
from latentlab.errors import Unmeasurable, UserError, unknown_name
from latentlab.latents import ChannelMoments, Latents, channel_moments
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.pixels import ChosenPixels, Pixels
from latentlab.registry import measurement

SCALES = (0.25, 0.5, 0.75)
"""Resizes of the publication."""

ErrorKind = Literal["delta", "mse", "l1", "cosine"]
_ERRORS: dict[ErrorKind, str] = {
    "delta": "|tau E(x) - E(tau x)|^2 / |E(tau x)|^2",
    "mse": "mean square of tau E(x) - E(tau x)",
    "l1": "mean absolute tau E(x) - E(tau x)",
    "cosine": "1 - cos(tau E(x), E(tau x))",
}
_NAMES: dict[Kind, str] = {"rotate": "turns by 90, 180, 270 degrees", "scale": "resizes", "flip": "flips"}


@dataclass(frozen=True)
class _Encoder:
    """An encoder that checks what it gives: a finite grid of latents [b,c,h,w], in float64."""

    encode: Encode
    moments: ChannelMoments | None = None

    def __call__(self, images: Tensor, what: str = "images") -> Tensor:
        latents = encoded(self.encode, images, what)
        if latents.ndim != 4:
            raise Unmeasurable(
                f"equivariance needs latents on a grid [n,c,h,w], and this tokenizer gives {list(latents.shape[1:])}: "
                "1-D tokens have no place in the image that could be turned or resized"
            )
        latents = latents.double()
        return latents if self.moments is None else self.moments.standardise(latents)


@measurement(
    MetricCard(
        name="equivariance",
        title="Affine equivariance error",
        summary="how far the latent of a turned, resized or mirrored image is from the turned, resized or mirrored latent",
        formula="Delta_T = mean over tau in T and images x of |tau E(x) - E(tau x)|^2 / |E(tau x)|^2",
        unit="relative squared error",
        range="0 (equivariant) upwards; about 2 where the two latents have nothing in common",
        better="lower",
        source="Kouzelis et al., EQ-VAE, arXiv 2502.09509, appendix C.3; bilinear as in its training code, the paper says "
        "bicubic; rotations as headline, flips in both directions and the choice of images are ours",
        needs=("images", "encode"),
        confounds="mean of the latents (a large one makes the relative error small); for resizes the grid size and the fine "
        "detail of the images, which a resize without antialiasing skips; for discrete tokenizers the quantisation",
        variants={
            "transforms='scale'": "resizes as headline; 'rotate', 'scale', 'flip' measure only these, 'all' heads rotations",
            "interpolation='bicubic'": "resize as the paper says, not as its code does",
            "error='mse'": "mean square of the difference, not divided by the norm; 'l1': mean absolute; 'cosine': 1 - cosine",
            "normalize=True": "latents standardised per channel by the statistics of the untransformed images",
            "scales=(0.5,)": "other resizes",
        },
        invariances="scale of the latents (delta, cosine), their sign, the order of the channels, and that of the images while "
        "all are used (limit=None)",
        known_values={
            "average pooling and a 1x1 convolution": "0 for rotations, flips and the bilinear resize by 0.5",
            "independent latents": "2",
            "random patchify convolution K on white noise, mse": "|K - rot^-1 K|^2 per output",
            "SD-VAE (published)": "rotate 0.89, scale 0.69 (table 1); 0.93, 0.80 (table 7)",
        },
        test="tests/analyses/test_equivariance.py::test_average_pooling_is_equivariant",
    )
)
def equivariance(
    *,
    images: Pixels,
    encode: Encode,
    transforms: Literal["all", "rotate", "scale", "flip"] = "all",
    error: ErrorKind = "delta",
    normalize: bool = False,
    interpolation: Interpolation = "bilinear",
    scales: tuple[float, ...] | None = None,
    limit: int | None = 128,
    seed: int = 0,
) -> Measurement:
    """Measure the equivariance error of an encoder; every image is encoded once per transform, and once as it is.

    Args:
        images: in [-1,1].
        encode: images [b,3,H,W] -> latents [b,c,h,w]; the posterior's mean, as sampling would put a floor under the error.
        transforms: which kind is the headline and measured alone; ``all`` measures the three kinds, rotations as headline.
        error: ``delta``, ``mse``, ``l1`` or ``cosine``.
        normalize: standardise each channel first, with mean and std of the untransformed images.
        interpolation: of resizes: ``bilinear`` or ``bicubic``, both without antialiasing and with align_corners=False.
        scales: resizes as shares of the side; None for 0.25, 0.5, 0.75, of which ``all`` leaves out those that give no whole
            cells.
        limit: at most this many images, balanced over classes; None for all.
        seed: chooses the images that ``limit`` keeps; of the bootstrap.

    Returns:
        Mean error over the headline's transforms and images; the error of every measured kind beside it. Interval: bootstrap
        over images. ``details``: ``transforms`` and ``kinds`` (names), ``error``, ``error_low``, ``error_high``, one per
        transform; ``unit``.

    Raises:
        UserError: an unknown option, 1-D tokens, a resize to a fraction of a cell, an encoder that refuses an image size it
            needs, a latent of norm 0, or non-finite latents.
    """
    _check_options(transforms, error, interpolation, limit)
    if limit is not None and limit < images.n:
        images = ChosenPixels(images, choose_subset(images.n, images.labels, limit, seed))
    encoder = _Encoder(encode, _moments(images, encode) if normalize else None)
    kinds = KINDS if transforms == "all" else (transforms,)
    chosen, warnings = _usable(images.take(slice(0, 1)), encoder, kinds, scales, interpolation)
    errors = _measure_errors(images, encoder, chosen, error)
    columns = {kind: errors[:, [tau.kind == kind for tau in chosen]] for kind in kinds}
    of_kind = {str(kind): own.mean(1) for kind, own in columns.items() if own.size}  # resizes may all be impossible
    table = np.column_stack([*of_kind.values(), errors])
    replicates = bootstrap_means(table, seed) if images.n > 1 else None
    estimates = _estimates(table, replicates)
    if images.n < 2:
        warnings.append("one image only: an interval over images is not possible")
    return Measurement(
        name="equivariance",
        variant=_variant(kinds[0], chosen, error, normalize, interpolation),
        value=estimates[0].value,
        interval=estimates[0].interval,
        replicates=None if replicates is None else replicates[:, 0],
        direction="lower",
        unit=_unit(error, normalize),
        n=images.n,
        parameters={
            "transforms": transforms,
            "error": error,
            "normalize": normalize,
            "interpolation": interpolation,
            "scales": [tau.amount for tau in chosen if tau.kind == "scale"],
            "limit": limit,
            "seed": seed,
        },
        companions=dict(zip(of_kind, estimates, strict=False)),
        warnings=tuple(warnings),
        details={**_details(chosen, estimates[len(of_kind) :]), "unit": _unit(error, normalize)},
    )


class _Encoded(Latents):
    """The latents of images, encoded anew whenever they are asked for."""

    def __init__(self, images: Pixels, encode: _Encoder) -> None:
        self._images, self._encode = images, encode
        self.n, self.shape = images.n, tuple(encode(images.take(slice(0, 1))).shape[1:])

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents of the images at ``indices``, [b,c,h,w]."""
        return self._encode(self._images.take(indices))

    def slices(self, size: int | None = None) -> Iterator[slice]:
        """Yield index ranges of as many images as fit a batch: latents are smaller."""
        return self._images.slices(size)


def _check_options(transforms: str, error: str, interpolation: str, limit: int | None) -> None:
    for what, given, known in (
        ("transforms", transforms, ("all", *KINDS)),
        ("error", error, tuple(_ERRORS)),
        ("interpolation", interpolation, INTERPOLATIONS),
    ):
        if given not in known:
            raise unknown_name(what, str(given), known)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}")


def _usable(
    image: Tensor,
    encoder: _Encoder,
    kinds: Sequence[Kind],
    scales: Sequence[float] | None,
    interpolation: Interpolation,
) -> tuple[list[Transform], list[str]]:
    """Return the transforms that ``image`` [1,3,H,W] shows to be possible, and what to say about the others.

    Default resizes that are not possible are left out; anything else that is not is an error.
    """
    if scales is not None and (not scales or not all(0 < scale < np.inf for scale in scales)):
        raise UserError(f"scales must be positive numbers, got {list(scales)}")
    latent = encoder(image)
    chosen, warnings = [], []
    for kind in kinds:
        for tau in transforms_of(kind, SCALES if scales is None else scales, interpolation):
            problem = _fraction(tau, image, latent) or _refusal(tau, image, latent, encoder)
            if problem is None:
                chosen.append(tau)
            elif kind == "scale" and scales is None and len(kinds) > 1:
                warnings.append(f"left out: {problem}")
            else:
                hint = ": name others, for example scales=(0.5,)" if kind == "scale" else ""
                raise UserError(problem + hint)
    return chosen, warnings


def _fraction(tau: Transform, image: Tensor, latent: Tensor) -> str | None:
    """Return what is wrong when ``tau`` gives a fraction of a pixel or of a cell."""
    if tau.fits(image.shape[-2:]) and tau.fits(latent.shape[-2:]):
        return None
    return (
        f"resizing by {tau.amount:g} gives no whole number of pixels and cells for images of {_size(image)} with latents of "
        f"{_size(latent)}"
    )


def _refusal(tau: Transform, image: Tensor, latent: Tensor, encoder: _Encoder) -> str | None:
    """Return what is wrong when the encoder does not take the transformed image, or gives another grid for it."""
    transformed, expected = tau(image), tau(latent)
    try:
        found = encoder(transformed)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # encoders refuse sizes in their own ways
        reason = " ".join(str(error).split())[:200]
        return f"the encoder does not take images of {_size(transformed)}, as {tau.name} needs: {reason}"
    if found.shape != expected.shape:
        return (
            f"the encoder gives latents of {_size(found)} for images of {_size(transformed)}, and {_size(expected)} are "
            f"needed to compare ({tau.name})"
        )
    return None


def _size(grids: Tensor) -> str:
    return "x".join(map(str, grids.shape[-2:]))


def _measure_errors(images: Pixels, encoder: _Encoder, chosen: Sequence[Transform], kind: ErrorKind) -> np.ndarray:
    """Return the error of every image under every transform, [n,T]."""
    rows: list[Tensor] = []
    done = 0
    for batch in images.batches():
        latents = encoder(batch)
        columns = []
        for tau in chosen:
            encoded = encoder(tau(batch), f"images transformed by {tau.name}")
            columns.append(_error(tau(latents).flatten(1), encoded.flatten(1), kind, tau, done))
        rows.append(torch.stack(columns, dim=1))
        done += len(batch)
    return torch.cat(rows).numpy()


def _error(transformed: Tensor, encoded: Tensor, kind: ErrorKind, tau: Transform, first: int) -> Tensor:
    """Return the error of ``transformed`` latents tau E(x) against ``encoded`` E(tau x), both [b,d] float64; [b]."""
    difference = transformed - encoded
    if kind == "mse":
        return difference.square().mean(1)
    if kind == "l1":
        return difference.abs().mean(1)
    norm = torch.linalg.vector_norm(encoded, dim=1)
    if kind == "cosine":
        norm = norm * torch.linalg.vector_norm(transformed, dim=1)
    if not norm.all():
        raise UserError(
            f"the latent of image {first + int(torch.nonzero(norm == 0)[0])} under {tau.name} is 0, so there is no relative "
            "error: use error='mse'"
        )
    if kind == "cosine":
        return 1 - (transformed * encoded).sum(1) / norm
    return difference.square().sum(1) / norm**2


def _moments(images: Pixels, encode: Encode) -> ChannelMoments:
    return channel_moments(_Encoded(images, _Encoder(encode)))


def _estimates(table: np.ndarray, replicates: np.ndarray | None) -> list[Estimate]:
    """Return the mean of every column [n,m], with its interval."""
    values = table.mean(0).tolist()
    if replicates is None:
        return [Estimate(value) for value in values]
    return [Estimate(v, percentile_interval(r, len(table))) for v, r in zip(values, replicates.T, strict=True)]


def _details(chosen: Sequence[Transform], estimates: Sequence[Estimate]) -> dict[str, list[str] | np.ndarray]:
    low, high = np.array([e.interval or (np.nan, np.nan) for e in estimates]).T
    return {
        "transforms": [tau.name for tau in chosen],
        "kinds": [tau.kind for tau in chosen],
        "error": np.array([e.value for e in estimates]),
        "error_low": low,
        "error_high": high,
    }


def _variant(
    headline: Kind, chosen: Sequence[Transform], error: ErrorKind, normalize: bool, interpolation: Interpolation
) -> str:
    """Return the definition used, in words."""
    what = _NAMES[headline]
    if headline == "scale":
        resizes = ", ".join(f"{tau.amount:g}" for tau in chosen if tau.kind == "scale")
        what = f"{interpolation} resizes by {resizes}"
    return f"{what}, {error}: {_ERRORS[error]}, {'per-channel normalised' if normalize else 'raw'}"


def _unit(error: ErrorKind, normalize: bool) -> str:
    own = "channel std" if normalize else "latent units"
    return {"delta": "relative squared error", "mse": f"squared {own}", "l1": own, "cosine": "1 - cosine"}[error]
