"""How faithfully a tokenizer gives images back: PSNR, SSIM, ST-LPIPS, and how much of its codebook it uses."""

import numpy as np
import torch
from torch import Tensor

from analyses.intervals import mean_interval
from latentlab.data.base import ImageSet
from latentlab.encoding import default_batch_size, to_unit_range
from latentlab.errors import UserError
from latentlab.measurement import Estimate
from latentlab.quality.stlpips import STLPIPS
from latentlab.runtime import progress
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer

PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def reconstruction_scores(
    tokenizer: Tokenizer,
    images: ImageSet,
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Estimate]:
    """Encode and decode all ``images`` and compare the results, rounded to 8 bits, with the originals.

    Args:
        tokenizer: moved to ``device`` and put in evaluation mode; posteriors are not sampled.
        images: streamed; only a few numbers per image are kept.
        batch_size: images per pass, by default as `default_batch_size` says; changes nothing but speed and memory.
        device: where the tokenizer runs.
        seed: of the bootstrap over images.

    Returns:
        Means over images with 95 % intervals: ``psnr`` (dB, higher is better), ``ssim`` (at most 1, higher is better),
        ``st_lpips`` (alex, from 0, lower is better). For discrete tokenizers also, as facts about these images without
        interval: ``codebook_usage`` (share of codes that occur, 0 to 1) and ``perplexity`` (1 to the number of codes).

    Raises:
        UserError: batch size below 1, images too small, or reconstructions of another size or with NaN.
    """
    size = default_batch_size(images.image_size, device) if batch_size is None else batch_size
    if size < 1:
        raise UserError(f"batch size must be at least 1, got {size}")
    tokenizer = tokenizer.to(device).eval()
    distance = STLPIPS("alex").to(device)
    counts = np.zeros(len(tokenizer.codebook), dtype=np.int64) if isinstance(tokenizer, DiscreteTokenizer) else None
    columns: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "st_lpips": []}
    with progress(f"reconstructing {images.name}", images.n) as advance, torch.inference_mode():
        for indices, pixels in images.batches(size):
            originals = pixels.to(device)
            decoded, codes = _reconstruct(tokenizer, to_unit_range(originals))
            results = to_uint8(decoded)
            columns["psnr"].append(psnr(results, originals))
            columns["ssim"].append(ssim(results, originals))
            columns["st_lpips"].append(distance(to_unit_range(results), to_unit_range(originals)))
            if counts is not None and codes is not None:
                counts += np.bincount(codes.flatten().cpu().numpy(), minlength=len(counts))
            advance(len(indices))
    scores = {name: _mean(torch.cat(parts), seed) for name, parts in columns.items()}
    return scores if counts is None else {**scores, **codebook_scores(counts)}


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1,1] as uint8, rounded and clipped.

    Raises:
        UserError: NaN or infinity among the values.
    """
    if not torch.isfinite(images).all():
        raise UserError("the tokenizer decodes to NaN or infinite pixels: check its weights")
    return ((images + 1) * (PEAK / 2)).round().clamp(0, PEAK).to(torch.uint8)


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
    if min(first.shape[2:]) < _WINDOW:
        raise UserError(f"SSIM needs images of at least {_WINDOW}x{_WINDOW} pixels, got {list(first.shape[2:])}")
    x, y = _exact(first, second)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean((1, 2, 3))


def codebook_scores(counts: np.ndarray) -> dict[str, Estimate]:
    """Return ``codebook_usage`` and ``perplexity`` from how often each code occurred, int [v].

    Perplexity is the exponential of the entropy of the frequencies: as many equally frequent codes would carry as much.
    """
    p = counts[counts > 0] / counts.sum()
    return {
        "codebook_usage": Estimate(float(np.mean(counts > 0))),
        "perplexity": Estimate(float(np.exp(-np.sum(p * np.log(p))))),
    }


def _reconstruct(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return decoded images [n,3,H,W] and, of a discrete tokenizer, the codes they were decoded from."""
    if isinstance(tokenizer, DiscreteTokenizer):
        codes = tokenizer.indices(images)
        return tokenizer.decode_indices(codes), codes
    return tokenizer.decode(tokenizer.encode(images)), None


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
    windows = side - _WINDOW + 1
    offset = torch.arange(side) - torch.arange(windows)[:, None] - _WINDOW // 2
    weights = torch.exp(-(offset.double() ** 2) / (2 * _SIGMA**2)) * (offset.abs() <= _WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def _mean(values: Tensor, seed: int) -> Estimate:
    """Return the mean over images and its interval; equal images make PSNR infinite, which has none."""
    array = values.cpu().double().numpy()
    return Estimate(float(array.mean()), mean_interval(array, seed) if np.isfinite(array).all() else None)
