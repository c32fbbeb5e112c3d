"""Collapse: what is left of an image when its latents pass through 6 numbers on a product of circles.

MIND (arXiv 2606.00094, section 3.1): continuous latents that are projected so lose the image, discrete tokens do not. Here for
one tokenizer, on a few images, each with a bottleneck trained on 8 views of it (`analyses.bottleneck`); the headline is the
perceptual distance from what the tokenizer decodes after the bottleneck to what it decodes without one, at the end of training.

    value = mean over images of mean over views of LPIPS(D(z'), D(z)),   z' = z through the bottleneck
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from analyses.bottleneck import CODES, Sphere
from analyses.collapse_run import SETS, VIEWS, Run, Setting, choose_images, make_view_sets, positions_of, run_bottleneck
from analyses.decoding import Decode, Encode
from analyses.intervals import bootstrap_means, mean_interval, percentile_interval, rough_interval
from latentlab.errors import UserError
from latentlab.measurement import Estimate, Measurement, MetricCard
from latentlab.pixels import Pixels
from latentlab.quality.perceptual import perceptual_distance
from latentlab.registry import measurement


@measurement(
    MetricCard(
        name="collapse",
        title="Bottleneck collapse",
        summary="how far an image moves when its latents pass through a bottleneck of a few numbers on a product of circles",
        formula="mean LPIPS(D(z'), D(z)),  z' = z through Linear-GELU-Linear-sphere-Linear-GELU-Linear (continuous) or "
        "Embedding-sphere-Linear (ids), trained on 8 views of the image",
        unit="perceptual distance",
        range="0 (nothing lost) upwards; the distance to another view of the same image is given beside it",
        better="none",
        source="MIND, arXiv 2606.00094, section 3.1, which shows one image in a figure without numbers; own reconstruction as "
        "the reference, GELU, weights without biases (the only reading that fits the published 196K) and held-out views are "
        "our choice",
        needs=("images", "encode", "decode"),
        confounds="a discrete bottleneck is given each id as input and as label: it only has to memorise the ids of 8 views, "
        "while the continuous one regresses vectors. The perceptual network is named in the variant; values of different "
        "networks, or of different image sizes, do not compare",
        variants={
            "dims=D": "numbers in the bottleneck",
            "sphere='whole'": "one sphere of the same norm instead of pairs on circles",
            "sphere='none'": "no normalisation: the control of the published claim",
            "vocabulary=V": "number of codes whose discrete bottleneck a continuous one matches in parameters",
            "patch=P": "cells per side of a continuous position",
            "perceptual='lpips'": "the perceptual network: lpips, lpips_vgg, st_lpips or st_lpips_vgg",
        },
        invariances="scaling and shifting channels of continuous latents, which are standardised over the views; renaming codes "
        "changes the initial weights only",
        known_values={"a bottleneck as wide as the latents, without sphere": "near 0", "ids, enough iterations": "0"},
        test="tests/analyses/test_collapse.py::test_without_normalisation_a_wide_bottleneck_loses_nothing",
        on_request=True,
    )
)
def collapse(
    *,
    images: Pixels,
    encode: Encode,
    decode: Decode,
    codebook: Tensor | None = None,
    dims: int = 6,
    sphere: Sphere = "pairs",
    iterations: int = 1000,
    subjects: int = 4,
    vocabulary: int = CODES,
    patch: int | None = None,
    perceptual: str = "auto",
    seed: int = 0,
    device: str = "cpu",
) -> Measurement:
    """Measure what a bottleneck leaves of a few images.

    Args:
        images: the set that the images, and others to hold out, are chosen from.
        encode: the tokenizer's encoder.
        decode: its decoder.
        codebook: [v,c]: the latents are its rows, and their ids pass through the discrete bottleneck.
        dims: numbers in the bottleneck.
        sphere: ``pairs`` (product of circles), ``whole`` (one sphere) or ``none``.
        iterations: optimiser steps, AdamW on all views at once.
        subjects: number of images, each with a bottleneck of its own.
        vocabulary: number of codes whose discrete bottleneck a continuous one matches in parameters; a codebook has its own.
        patch: side of the patches that continuous latents are cut into; None as `usual_patch` says.
        perceptual: name for `perceptual_distance`.
        seed: of views, weights and the bootstrap over images.
        device: where bottlenecks and perceptual network are.

    Returns:
        Perceptual distance, 0 when nothing is lost. ``details``: ``iteration`` [T], curves [T] averaged over images
        (``to_reconstruction``, ``to_view``, ``latent_norm``, held-out ones by name), ``per_image`` [subjects] and references.

    Raises:
        UserError: too few images, or an impossible bottleneck.
    """
    if iterations < 1:
        raise UserError(f"iterations must be at least 1, got {iterations}")
    setting = Setting(dims, sphere)
    distance = perceptual_distance(perceptual, device)
    chosen, others = choose_images(images, subjects)
    runs = []
    for subject in chosen.tolist():
        sets = make_view_sets(images, subject, others, encode, decode, seed)
        positions = positions_of(sets, codebook, patch, vocabulary)
        runs.append(
            run_bottleneck(sets, positions, setting, decode, distance, iterations=iterations, seed=seed, device=device)
        )
    per_image = np.array([run.last("fitted", "to_reconstruction") for run in runs])
    replicates = bootstrap_means(per_image, seed) if len(runs) > 1 else None
    return Measurement(
        name="collapse",
        variant=f"{distance.name}, {'ids' if positions.discrete else 'standardised vectors'} through {setting}",
        value=float(per_image.mean()),
        interval=None if replicates is None else percentile_interval(replicates, len(runs)),
        direction="none",
        unit="perceptual distance",
        n=len(runs),
        parameters={
            "dims": dims,
            "sphere": sphere,
            "iterations": iterations,
            "subjects": subjects,
            "vocabulary": vocabulary if codebook is None else len(codebook),
            "patch": getattr(positions, "patch", None),
            "perceptual": distance.name,
            "parameters": runs[0].parameters,
            "views": VIEWS,
            "seed": seed,
        },
        companions=_companions(runs, seed),
        warnings=_cautions(runs, positions.discrete),
        details=_details(runs, per_image),
        replicates=replicates,
    )


def _companions(runs: Sequence[Run], seed: int) -> dict[str, Estimate]:
    """Return what is told beside the headline, with intervals over images."""
    columns = {
        "to the view": [run.last("fitted", "to_view") for run in runs],
        "held-out views": [run.last("heldout_views", "to_reconstruction") for run in runs],
        "held-out images": [run.last("heldout_images", "to_reconstruction") for run in runs],
        "to another view": [run.references["other_view"] for run in runs],
    }
    if "token_accuracy" in runs[0].curves["fitted"]:
        columns["token accuracy"] = [run.last("fitted", "token_accuracy") for run in runs]
    return {
        name: Estimate(float(np.mean(values)), mean_interval(np.array(values), seed))
        for name, values in columns.items()
    }


def _cautions(runs: Sequence[Run], discrete: bool) -> tuple[str, ...]:
    said = rough_interval(len(runs), "images")
    if len(runs) == 1:
        said.append("one image only: an interval over images is not possible")
    if discrete:
        distinct = max(run.distinct for run in runs)
        said.append(f"each id is input and label: the bottleneck memorises at most {distinct} ids per image")
    return tuple(said)


def _details(runs: Sequence[Run], per_image: np.ndarray) -> dict[str, object]:
    """Return curves, means over images."""
    curves = {
        f"{name}_{kind}" if name != "fitted" else kind: np.mean([run.curves[name][kind] for run in runs], axis=0)
        for name in SETS
        for kind in runs[0].curves[name]
    }
    references = {name: float(np.mean([run.references[name] for run in runs])) for name in runs[0].references}
    return {
        "iteration": np.array(runs[0].iterations),
        "latent_norm": np.mean([run.latent_norm for run in runs], axis=0),
        **curves,
        "per_image": per_image,
        **references,
    }
