"""How much a reconstruction differs from its original, image by image: PSNR and SSIM, on 8-bit pixels as they are displayed."""

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import mean_interval
from latentlab.errors import UserError
from latentlab.measurement import Estimate
from latentlab.pixels import to_unit_range
from latentlab.quality.perceptual import PerceptualDistance

PEAK = 255.0
WINDOW = 11
"""Pixels a side of the window of SSIM; smaller images have none."""

_SIGMA = 1.5
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def image_scores(
    results: Tensor, originals: Tensor, distance: PerceptualDistance | None
) -> dict[str, Tensor]:  # uint8 [n,3,H,W] twice => [n] each
    """Return ``psnr``, ``ssim`` and the perceptual distance under its name, one number per image.

    Images that are smaller than the window of SSIM have none.

    Raises:
        UserError: shapes differ.
    """
    scores = {"psnr": psnr(results, originals)}
    if min(results.shape[2:]) >= WINDOW:
        scores["ssim"] = ssim(results, originals)
    if distance is not None:
        scores[distance.name] = distance(to_unit_range(results), to_unit_range(originals))
    return scores


def mean_score(values: Tensor, seed: int) -> Estimate:
    """Return the mean over images and its interval; equal images make PSNR infinite, which has none."""
    array = values.cpu().double().numpy()
    return Estimate(float(array.mean()), mean_interval(array, seed) if np.isfinite(array).all() else None)


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1,1] as uint8, rounded and clipped.

    Raises:
        UserError: NaN or infinity among the values.
    """
    if not torch.isfinite(images).all():
        raise UserError("the tokenizer decodes to NaN or infinite pixels: check its weights")
    return ((images + 1) * (PEAK / 2)).round().clamp(0, PEAK).to(torch.uint8)


def as_displayed(images: Tensor) -> Tensor:
    """Return images in [-1,1] rounded to 8 bits and clipped, again in [-1,1], float32."""
    return to_unit_range(to_uint8(images))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, float64 [n], of uint8 images [n,c,H,W]: 10 log10(255^2 / MSE).

    Infinite for equal images.

    Raises:
        UserError: shapes differ.
    """
    x, y = _exact(first, second)
    return 10 * torch.log10(PEAK**2 / (x - y).square().mean((1, 2, 3)))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity, float64 [n], of uint8 images [n,c,H,W]: 1 for equal images, at least -1.

    Wang, Bovik, Sheikh and Simoncelli 2004 (doi 10.1109/TIP.2003.819861), equation 13 with their Gaussian window of 11x11
    pixels and deviation 1.5, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2, averaged over the windows inside the image. They
    define it for one channel; colour images get the mean over channels.

    Raises:
        UserError: shapes differ, or a side is shorter than the window.
    """
    if min(first.shape[2:]) < WINDOW:
        raise UserError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, got {list(first.shape[2:])}")
    x, y = _exact(first, second)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean((1, 2, 3))


def _exact(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two batches of one shape in float64 (on the CPU where the device has none)."""
    if first.shape != second.shape:
        raise UserError(
            f"reconstructions have shape {list(first.shape)}, images {list(second.shape)}: "
            "choose an image size the tokenizer can divide"
        )
    x, y = (images.cpu() if images.device.type == "mps" else images for images in (first, second))
    return x.double(), y.double()


def _window_mean(maps: Tensor) -> Tensor:
    """Return Gaussian-weighted means [n,c,H-10,W-10] of [n,c,H,W] over all windows inside."""
    h, w = maps.shape[2:]
    return _window_weights(h).to(maps) @ maps @ _window_weights(w).to(maps).T


def _window_weights(side: int) -> Tensor:
    """Return the weights [side-10,side] of every pixel of a line in every window: a banded matrix.

    As a matrix product the filter is several times faster in float64 than as a convolution, for 32 pixels a side and for 256.
    """
    windows = side - WINDOW + 1
    offset = torch.arange(side) - torch.arange(windows)[:, None] - WINDOW // 2
    weights = torch.exp(-(offset.double() ** 2) / (2 * _SIGMA**2)) * (offset.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)
