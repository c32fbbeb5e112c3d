"""What one analysis found, with everything needed to repeat it: the content of ``results.json``."""

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from latentlab import __version__
from latentlab.files import write_json
from latentlab.measurement import Measurement

RESULTS_SCHEMA_VERSION = 1
"""Version of the form of ``results.json``; raised when a key changes its meaning or disappears."""

_RECORDED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "umap-learn", "pandas", "safetensors")


@dataclass(frozen=True)
class Results:
    """One analysis; the attributes are the keys of ``results.json``.

    Attributes:
        tokenizer: the tokenizer's specification (name, release, shapes, weights' SHA-256), None for latents of unknown origin.
        data: ``name`` and content ``fingerprint`` of the images, None when latents were given.
        latents: ``path``, content ``fingerprint``, ``n`` and ``shape`` (channel first) of what was measured.
        seed: seed of everything random.
        device: where it was computed.
        measurements: every finished measurement.
        refused: name of each measurement that was not made -> why.
        reused: names of the measurements taken over from an earlier run, whose inputs were the same.
        skipped_images: images left out because they could not be read.
        figures: files below the run directory.
        notes: what else a reader should know (figures that could not be drawn).
        predictions: what predictors say of generation quality, as `latentlab.prediction` writes it; ``text`` is the line.
        command: command line, None when called from Python.
        created: time of the analysis, UTC, ISO 8601.
        environment: Python, platform and library versions.
    """

    tokenizer: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    latents: Mapping[str, Any]
    seed: int
    device: str
    measurements: tuple[Measurement, ...]
    refused: Mapping[str, str]
    reused: tuple[str, ...] = ()
    skipped_images: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    predictions: tuple[Mapping[str, Any], ...] = ()
    command: str | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    environment: Mapping[str, Any] = field(default_factory=lambda: environment())

    @property
    def title(self) -> str:
        """What was measured, in a few words: ``ibq on fashion:test``."""
        if self.tokenizer and self.data:
            return f"{self.tokenizer['name']} on {self.data['name']}"
        return f"latents of {Path(self.latents['path']).name}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": RESULTS_SCHEMA_VERSION,
            "latentlab": __version__,
            "created": self.created,
            "command": self.command,
            "tokenizer": None if self.tokenizer is None else dict(self.tokenizer),
            "data": None if self.data is None else dict(self.data),
            "latents": dict(self.latents),
            "seed": self.seed,
            "device": self.device,
            "environment": dict(self.environment),
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "refused": dict(self.refused),
            "reused": list(self.reused),
            "skipped_images": list(self.skipped_images),
            "figures": list(self.figures),
            "notes": list(self.notes),
            "predictions": [dict(prediction) for prediction in self.predictions],
        }

    def write(self, folder: Path) -> None:
        """Write ``results.json`` into ``folder``, atomically."""
        write_json(folder / "results.json", self.to_dict())


def environment() -> dict[str, Any]:
    """Return the versions that may shift a number: Python, platform and the numerical libraries."""
    versions = {name: metadata.version(name) for name in _RECORDED if _installed(name)}
    return {"python": sys.version.split()[0], "platform": platform.platform(), "versions": versions}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
