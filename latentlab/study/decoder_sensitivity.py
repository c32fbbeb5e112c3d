"""The confounder of a study: how much a tokenizer's decoder makes of small errors of a generator.

`analyses.sensitivity` defines the measurement; here are the columns of a study's table. Noise is in units of the channel
standard deviations of the training latents, and every change is divided by it, so that a linear decoder has equal values at
all levels. The headline is the change of the pixels at the level 0.1: it depends on no judge.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.sensitivity import HEADLINE_LEVEL, sensitivity
from latentlab.codec import codec_of
from latentlab.latents import Latents
from latentlab.tokenizers.base import Tokenizer

SIGMAS = (0.05, HEADLINE_LEVEL, 0.2, 0.5, 1.0)

_COLUMNS = {"pixels": "decoder_image", "perceptual": "decoder_perceptual", "features": "decoder_feature"}
"""What the table calls the curves of the measurement."""


def decoder_sensitivity(
    tokenizer: Tokenizer,
    store: Latents,
    *,
    sigmas: Sequence[float] = SIGMAS,
    judge: str = "fashion-classifier",
    n: int = 256,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the changes of decoded images per unit of noise on their latents.

    Args:
        tokenizer: decodes.
        store: its latents.
        sigmas: noise levels in channel standard deviations; that of the headline is added.
        judge: name of the feature extractor whose features are compared.
        n: images, balanced over classes.
        seed: of images, noise and bootstrap.
        device: where everything runs.

    Returns:
        ``decoder_sensitivity``, the headline: root mean square change of the pixels (in [-1,1]) at 0.1, per unit of noise. By
        level, as in ``decoder_image_0.1``: ``decoder_image`` (the same), ``decoder_perceptual`` (mean ST-LPIPS) and
        ``decoder_feature`` (root mean square change of the features, in units of their spread over images), all per unit of
        noise. ``_low`` and ``_high``: bootstrap over images. ``n_decoder``; ``warnings``.

    Raises:
        UserError: a level that is not positive, an unknown judge, latents that do not vary, or a decoder that gives NaN.
    """
    measured = sensitivity(
        store,
        decode=codec_of(tokenizer, device).decode,
        levels=tuple(sigmas),
        perceptual="st_lpips",
        extractor=judge,
        limit=n,
        seed=seed,
        device=device,
    )
    found: dict[str, Any] = {"n_decoder": measured.n, "warnings": list(measured.warnings)}
    found["decoder_sensitivity"] = measured.value
    if measured.interval is not None:
        found["decoder_sensitivity_low"], found["decoder_sensitivity_high"] = measured.interval
    for curve, column in _COLUMNS.items():
        for end in ("", "_low", "_high"):
            if f"{curve}{end}" in measured.details:
                found |= _by_level(f"{column}_", end, measured.details["levels"], measured.details[f"{curve}{end}"])
    return found


def _by_level(start: str, end: str, levels: np.ndarray, changes: np.ndarray) -> dict[str, float]:
    return {
        f"{start}{level:g}{end}": change / level
        for level, change in zip(levels.tolist(), changes.tolist(), strict=True)
    }
