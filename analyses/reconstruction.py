"""Reconstruction quality: how close decoded latents come to the images they were made of, as a set and one by one.

A Frechet distance between originals and reconstructions (rFID on Inception features), PSNR, SSIM and a perceptual distance.
It bounds what a generator on these latents can reach, and says little about how hard they are to generate.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from analyses.decoding import Decode, decoded, originals_of
from analyses.frechet import frechet_of_paired_features, sample_cautions
from latentlab.latents import Latents, tokenizer_layout
from latentlab.measurement import Measurement, MetricCard
from latentlab.pixels import Pixels, as_pixels
from latentlab.quality.features import FeatureExtractor, batch_size, feature_extractor, features_of
from latentlab.quality.fidelity import WINDOW, as_displayed, image_scores, mean_score, to_uint8
from latentlab.quality.perceptual import PerceptualDistance, perceptual_distance
from latentlab.quality.stlpips import SMALLEST_SIDE
from latentlab.registry import measurement
from latentlab.runtime import progress


@measurement(
    MetricCard(
        name="reconstruction",
        title="Reconstruction quality",
        summary="how close decoded latents come to the images they were made of",
        formula="d^2(features of x, features of D(E(x))) beside the means of PSNR = 10 log10(255^2 / MSE), SSIM and a "
        "perceptual distance",
        unit="squared feature distance",
        range="0 upwards; on other features than Inception's the scale is another, and the name in the variant says so",
        better="lower",
        source="Heusel et al. 2017 (FID); Wang et al. 2004 (SSIM); Zhang et al. 2018 (LPIPS), Ghildyal and Liu 2022 "
        "(ST-LPIPS); EfficientNet-Lite0 features by default, since their weights ship with the package",
        needs=("images", "decode"),
        confounds="bits per image: a larger latent reconstructs better and is harder to generate",
        variants={
            "extractor='inception'": "features of Inception-v3, when its weights are there: then the value is rFID",
            "perceptual='st_lpips'": "which perceptual distance; 'auto' takes LPIPS when its weights are there",
            "quantize=False": "features and perceptual distance of images as decoded, neither clipped nor rounded to 8 bits",
        },
        invariances="order of the images while all are used (limit=None), batch size, any change of the latents that the decoder "
        "undoes",
        bias="upwards, about in proportion to 1/n (the Fréchet distance; the means of PSNR and so on have none)",
        known_values={
            "reconstruction equal to the original": "0, PSNR infinite, SSIM 1, perceptual distance 0",
            "an error of e levels in every pixel": "PSNR 20 log10(255 / e)",
        },
        test="tests/analyses/test_reconstruction.py::test_perfect_reconstruction",
    )
)
def reconstruction(
    latents: Latents,
    *,
    images: Pixels,
    decode: Decode,
    extractor: str | Callable[[Tensor], Tensor] = "efficientnet-lite0",
    perceptual: str | Callable[[Tensor, Tensor], Tensor] | None = "auto",
    quantize: bool = True,
    limit: int | None = 2000,
    seed: int = 0,
    device: str = "cpu",
) -> Measurement:
    """Measure how decoded latents differ from the images they were made of.

    Args:
        latents: of the images; those of a discrete tokenizer are its code vectors, so that what is decoded is its codes.
        images: what the latents were made of, in the same order.
        decode: latents [b,c,h,w] or [b,l,c] -> images [b,3,H,W] in about [-1,1].
        extractor: name for `feature_extractor`, or a function of images [b,3,H,W] in [-1,1] that returns [b,d].
        perceptual: name for `perceptual_distance`, a function of two batches of images in [-1,1] that returns [b], or None.
        quantize: clip and round images to 8 bits before the features, as image files are. PSNR, SSIM and the perceptual
            distance are always those of 8-bit images.
        limit: at most this many images, evenly from the classes; None for all.
        seed: chooses the images that ``limit`` keeps, and of the bootstrap.
        device: where the features and the perceptual distance are computed.

    Returns:
        Frechet distance; ``psnr`` (dB, higher is better), ``ssim`` (at most 1, higher is better) and the perceptual distance
        under its name (lower is better) beside it. ``details``: ``per_image`` {name: [n]}, ``images`` (their indices).

    Raises:
        UserError: images or decoded images that do not fit, an unknown name, or weights that are not on this machine.
    """
    images = as_pixels(images)
    rows, originals = originals_of(latents, images, limit, seed)
    judge = feature_extractor(extractor, device)
    distance, warnings = _distance(perceptual, originals.shape, device)
    if min(originals.shape[1:]) < WINDOW:
        warnings.append(f"ssim needs images of at least {WINDOW} pixels a side: it was left out")
    real = features_of(judge, originals, quantize=quantize)
    rebuilt, scores = _compare(latents, rows, originals, decode, judge, distance, quantize)
    result = frechet_of_paired_features(real, rebuilt, seed)
    return Measurement(
        name="reconstruction",
        variant=f"r{judge.distance}, {'8-bit images' if quantize else 'images neither clamped nor quantised'}",
        value=result.value,
        interval=result.estimate.interval,
        replicates=result.replicates,
        direction="lower",
        unit="squared feature distance",
        n=len(rows),
        parameters={
            "extractor": judge.name,
            "perceptual": None if distance is None else distance.name,
            "quantize": quantize,
            "limit": limit,
            "seed": seed,
        },
        companions={name: mean_score(values, seed) for name, values in scores.items()},
        warnings=(*sample_cautions(len(real), real.shape[1], judge.name), *warnings),
        details={
            "images": rows,
            "distance": judge.distance,
            "per_image": {name: values.double().numpy() for name, values in scores.items()},
        },
    )


def _distance(
    perceptual: str | Callable[[Tensor, Tensor], Tensor] | None, shape: tuple[int, ...], device: str
) -> tuple[PerceptualDistance | None, list[str]]:
    """Return the perceptual distance, or None and why not."""
    if perceptual is None:
        return None, []
    if not isinstance(perceptual, str):
        return PerceptualDistance(str(getattr(perceptual, "name", "given distance")), perceptual), []
    distance = perceptual_distance(perceptual, device)
    smallest = SMALLEST_SIDE if distance.name.startswith("st_") else 32
    if min(shape[1:]) >= smallest:
        return distance, []
    return None, [f"{distance.name} needs images of at least {smallest} pixels a side: it was left out"]


def _compare(
    latents: Latents,
    rows: np.ndarray,
    originals: Pixels,
    decode: Decode,
    judge: FeatureExtractor,
    distance: PerceptualDistance | None,
    quantize: bool,
) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Return the features of the reconstructions, float32 [n,d], and the scores per image by name, [n] each."""
    features, scores = [], []
    with progress("reconstructing", len(rows)) as advance:
        for part in originals.slices(batch_size(originals, judge.device)):
            rebuilt = decoded(decode, tokenizer_layout(latents.take(rows[part])), originals.shape)
            results, given = (to_uint8(x).to(judge.device) for x in (rebuilt, originals.take(part)))
            features.append(judge(as_displayed(rebuilt) if quantize else rebuilt).float().numpy())
            with torch.no_grad():
                scores.append({name: values.cpu() for name, values in image_scores(results, given, distance).items()})
            advance(part.stop - part.start)
    return np.concatenate(features), {name: torch.cat([part[name] for part in scores]) for name in scores[0]}
