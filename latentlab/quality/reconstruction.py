"""How faithfully a tokenizer gives images back: PSNR, SSIM, ST-LPIPS, and how much of its codebook it uses."""

import numpy as np
import torch
from torch import Tensor

from latentlab.data.base import ImageSet
from latentlab.encoding import default_batch_size
from latentlab.errors import UserError
from latentlab.measurement import Estimate
from latentlab.pixels import to_unit_range
from latentlab.quality.fidelity import image_scores, mean_score, to_uint8
from latentlab.quality.perceptual import perceptual_distance
from latentlab.runtime import progress, whole_float32
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer


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
    distance = perceptual_distance("st_lpips", device)  # always the same one, so that tables stay comparable
    counts = np.zeros(len(tokenizer.codebook), dtype=np.int64) if isinstance(tokenizer, DiscreteTokenizer) else None
    columns: list[dict[str, Tensor]] = []
    shown = progress(f"reconstructing {images.name}", images.n)
    with shown as advance, torch.inference_mode(), whole_float32():
        for indices, pixels in images.batches(size):
            originals = pixels.to(device)
            decoded, codes = _reconstruct(tokenizer, to_unit_range(originals))
            columns.append(image_scores(to_uint8(decoded), originals, distance))
            if counts is not None and codes is not None:
                counts += np.bincount(codes.flatten().cpu().numpy(), minlength=len(counts))
            advance(len(indices))
    scores = {name: mean_score(torch.cat([part[name] for part in columns]), seed) for name in columns[0]}
    return scores if counts is None else {**scores, **codebook_scores(counts)}


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
