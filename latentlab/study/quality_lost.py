"""Where the quality of samples is lost: in the generator's latents, in the decoder, or already in the reconstructions.

Three Frechet distances of the same samples tell:

    fd_latents            generated latents to training latents, per channel normalised: what the generator missed
    gfd_reconstructions   decoded samples to the tokenizer's reconstructions of training images: the same, as a judge sees it
    gfd                   decoded samples to the training images: all of it, and what reconstruction alone costs (rfd)

All are of the moments of n samples, so all are too large by about a constant over n: compare values of equal n only. In d
dimensions with unit variances that constant is about d (d+5) / 4, so latents of d = 512 have a distance of about 13 from
themselves at n = 5,000: ``fd_latents_floor`` is what real latents have. rfd, and the reference of gfd_reconstructions, are of
as many images as there are samples.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyses.frechet import frechet_distance, sample_cautions
from latentlab.codec import codec_of
from latentlab.data import open_data
from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.latents import ChannelMoments, Latents
from latentlab.measurement import Estimate, Measurement
from latentlab.pixels import SetPixels
from latentlab.quality.evaluation import Evaluation, evaluate
from latentlab.quality.features import FeatureExtractor, feature_extractor, forget_features
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.generation import frechet_of_features, moments_of
from latentlab.quality.image_sets import EvaluationSet, open_reference, open_samples
from latentlab.quality.sample_file import write_sample_file
from latentlab.study.generated_latents import read_generated_latents
from latentlab.tokenizers.base import Tokenizer

MOST_LATENTS = 50_000
"""Training latents that generated ones are compared with; they are in memory, float32."""


def reconstruct(tokenizer: Tokenizer, images: str, n: int, out: Path, device: str = "cpu") -> Path:
    """Write the reconstructions of ``n`` images, balanced over classes, to a file like that of samples; return ``out``.

    Args:
        tokenizer: decodes what it encodes; posteriors are not sampled.
        images: a data source (``fashion:train``).
        n: number of images.
        out: ``.npz`` file of the ADM format.
        device: where the tokenizer runs.

    Raises:
        UserError: fewer images than ``n``, images that cannot be read, or reconstructions with NaN.
    """
    originals = SetPixels(open_data(images, limit=n))
    if originals.n < n:
        raise UserError(f"{images} has {originals.n} images, fewer than the {n} samples: distances would not compare")
    codec = codec_of(tokenizer, device)
    classes = np.zeros(n, np.int64) if originals.labels is None else originals.labels

    def batches() -> Iterator[np.ndarray]:
        for batch in originals.batches():
            yield to_uint8(codec.decode(codec.encode(batch))).permute(0, 2, 3, 1).contiguous().numpy()

    write_sample_file(out, (n, *originals.shape[1:]), batches(), classes)
    return out


def reconstruction_quality(
    reconstructions: Path, reference: str, judges: Sequence[str], device: str = "cpu", limit: int | None = None
) -> dict[str, Any]:
    """Return ``rfd_<judge>``: the Frechet distance of reconstructions to the images of ``reference``, by each judge.

    Args:
        reconstructions: file of `reconstruct`.
        reference: training images.
        judges: names of feature extractors.
        device: where features are computed.
        limit: of the reference at most so many images, balanced over classes.

    Returns:
        ``rfd_<judge>`` with ``_low`` and ``_high``, ``n_reconstructions``, ``warnings``.

    Raises:
        UserError: a file or source that cannot be read, or an unknown judge.
    """
    made = open_samples(str(reconstructions))
    real = open_reference(reference, like=made, limit=limit)
    found: dict[str, Any] = {"n_reconstructions": made.n, "warnings": []}
    for name in judges:
        judge = feature_extractor(name, device)
        for measured in _judged(made, real, judge, "fd"):
            _note(found, f"rfd_{judge.plain}", measured)
    return found


def sample_quality(
    samples: Path,
    reference: str,
    judges: Sequence[str],
    reconstructions: Path | None = None,
    device: str = "cpu",
    limit: int | None = None,
) -> dict[str, Any]:
    """Return the quality of the images of a sampling run, by each judge.

    Args:
        samples: folder of the run, or its ``.npz`` file.
        reference: training images; all of them for ``gfd``, and as many as there are samples for precision and recall.
        judges: names of feature extractors.
        reconstructions: file of `reconstruct`, of as many training images as there are samples.
        device: where features are computed.
        limit: of the reference at most so many images, balanced over classes.

    Returns:
        ``gfd_<judge>``, ``precision_<judge>``, ``recall_<judge>``, and with reconstructions ``gfd_reconstructions_<judge>``, each
        with ``_low`` and ``_high``; ``n_samples``; ``warnings``.

    Raises:
        UserError: images that cannot be read, an unknown judge, or another number of reconstructions than of samples.
    """
    made = open_samples(str(samples))
    real, equally_many = (open_reference(reference, like=made, limit=most) for most in (limit, made.n))
    against = None if reconstructions is None else open_samples(str(reconstructions))
    if against is not None and against.n != made.n:
        raise UserError(
            f"{samples} holds {made.n} samples, {reconstructions} {against.n} images: make as many as samples"
        )
    found: dict[str, Any] = {"n_samples": made.n, "warnings": []}
    for name in judges:
        judge = feature_extractor(name, device)
        for measured in _judged(made, real, judge, "fd"):
            _note(found, f"gfd_{judge.plain}", measured)
        for measured in _judged(made, equally_many, judge, "pr"):
            _note(found, measured.name, measured)
        if against is not None:
            for measured in _judged(made, against, judge, "fd"):
                _note(found, f"gfd_reconstructions_{judge.plain}", measured)
        forget_features(judge, made.images, quantize=True)  # a study has thousands of samples, judged once each
    return found


def latent_quality(samples: Path, store: Latents, seed: int = 0) -> dict[str, Any]:
    """Return the Frechet distance of generated latents to training latents, over all coordinates of a latent.

    Both are normalised by the channel moments of the training latents. Estimator: means and full covariances (d x d) of both
    sets; time grows with the cube of d, and `MOST_LATENTS` of the training latents, balanced over classes, are in memory.

    Args:
        samples: folder of `generate_with_latents`.
        store: latents of the training images.
        seed: of the choice of latents and of the bootstrap.

    Returns:
        ``fd_latents`` (with ``_low`` and ``_high`` where n > d), ``fd_latents_floor``: the same of as many training latents to
        the others (None where there are too few), ``n_latents``, ``latent_dimension``, ``warnings``.

    Raises:
        UserError: no latents were kept, or they are of another shape than those of the store.
    """
    made = read_generated_latents(samples)
    if made.shape != store.shape:
        raise UserError(
            f"{samples} holds latents {list(made.shape)}, the store {list(store.shape)}: they are not of one tokenizer"
        )
    everything = choose_subset(store.n, store.labels, MOST_LATENTS, seed)
    real = _normalised(store, everything, store.moments)
    generated = _normalised(made, np.arange(made.n), store.moments)
    found: dict[str, Any] = {
        "n_latents": made.n,
        "latent_dimension": real.shape[1],
        "fd_latents_floor": _floor(real, None if store.labels is None else store.labels[everything], made.n, seed),
        "warnings": list(sample_cautions(made.n, real.shape[1], "latent")),
    }
    _put(found, "fd_latents", frechet_of_features(generated, real, seed))
    return found


def _floor(real: np.ndarray, labels: np.ndarray | None, n: int, seed: int) -> float | None:
    """Return the distance of ``n`` rows to all others; None where the others are fewer."""
    if len(real) < 2 * n:
        return None
    chosen = np.zeros(len(real), bool)
    chosen[choose_subset(len(real), labels, n, seed + 1)] = True
    return frechet_distance(*moments_of(real[chosen]), *moments_of(real[~chosen]))


def _normalised(latents: Latents, rows: np.ndarray, moments: ChannelMoments) -> np.ndarray:  # => float32 [n,d]
    parts = np.array_split(rows, max(1, -(-len(rows) // 1024)))
    return torch.cat([moments.standardise(latents.take(part)).flatten(1).float() for part in parts]).numpy()


def _judged(made: EvaluationSet, real: EvaluationSet, judge: FeatureExtractor, metric: str) -> tuple[Measurement, ...]:
    """Return the measurements of one metric by one judge.

    Raises:
        UserError: it cannot be made, for instance because these images are too few.
    """
    results = evaluate(Evaluation(made, real, (metric,), (judge,), device=judge.device))
    for what, reason in results.refused.items():
        raise UserError(f"{what}: {reason}")
    return results.measurements


def _note(found: dict[str, Any], name: str, measured: Measurement) -> None:
    """Put a value with its interval, and what limits it, among those that were ``found``."""
    _put(found, name, Estimate(measured.value, measured.interval))
    found["warnings"] += [f"{name}: {text}" for text in measured.warnings]


def _put(found: dict[str, Any], name: str, estimate: Estimate) -> None:
    found[name] = estimate.value
    if estimate.interval is not None:
        found[f"{name}_low"], found[f"{name}_high"] = estimate.interval
