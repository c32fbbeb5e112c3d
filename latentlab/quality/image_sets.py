"""Sets of images for an evaluation: generated ones with what is known of their making, and references with their published
statistics.

What a user writes: the folder of a sampling run, a ``.npz`` file in the format of the ADM suite (Dhariwal and Nichol 2021),
or a data source (``imagefolder:DIR``, ``fashion:train``). A reference ``.npz`` may hold images (``arr_0``), statistics of
Inception's features (``mu``, ``sigma`` of pool3; ``mu_s``, ``sigma_s`` of sFID's), or both: the published ImageNet batch has
statistics of the training set, for the distances, and 10,000 images, for precision and recall.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analyses.frechet import Moments
from latentlab.errors import UserError
from latentlab.files import file_sha256, read_json
from latentlab.pixels import Pixels, SetPixels
from latentlab.quality.folder_size import native_side
from latentlab.quality.generation import generated_images
from latentlab.quality.sample_file import UNREADABLE, SampleFile, check_archive
from latentlab.quality.sample_parts import PartImages

_SETTINGS = "settings.json"
_SIZELESS = ("imagefolder", "parquet")
"""Data sources whose images come in any size."""

_STATISTICS = {"inception": ("mu", "sigma"), "inception-spatial": ("mu_s", "sigma_s")}
"""Names, in a reference file, of the moments of an extractor's features."""


@dataclass(frozen=True)
class EvaluationSet:
    """Images, or statistics of their features.

    Attributes:
        name: as the user wrote it.
        pixels: the images; None when only statistics are there.
        moments: published mean and covariance of the features of an extractor, by its name.
        facts: what it is, as JSON values: path, content, hash or fingerprint, preparation.
        sampling: how the images were made, as JSON values; empty when that is not known.
        cautions: what limits every value made of it.
    """

    name: str
    pixels: Pixels | None
    facts: Mapping[str, Any]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()

    @property
    def images(self) -> Pixels:
        """The images.

        Raises:
            UserError: there are only statistics.
        """
        if self.pixels is None:
            held = ", ".join(sorted(self.moments))
            raise UserError(f"{self.name} holds statistics ({held}) and no images: give a reference with images")
        return self.pixels

    @property
    def n(self) -> int | None:
        """Number of images; None where there are none."""
        return None if self.pixels is None else self.pixels.n


def open_samples(source: str, image_size: int | None = None, skip_bad: bool = False) -> EvaluationSet:
    """Open generated images: a run's folder, a ``.npz`` file, or a data source.

    Args:
        source: as the user wrote it.
        image_size: side of the images of a data source after the centre crop (default: of a folder, the size they have).
        skip_bad: leave out images of a data source that cannot be read.

    Raises:
        UserError: there are none, the run is unfinished, a file is damaged, or the images of a folder are not square and of
            one size and no size is said.
    """
    if _is_data(source):
        return _of_data(source, image_size or native_side(source), skip_bad=skip_bad)
    path = Path(source).expanduser()
    if path.is_dir() and not (path / _SETTINGS).exists() and not any(path.glob("samples_*.npz")):
        raise UserError(f"{path} is not the folder of a sampling run: write imagefolder:{path} for a folder of images")
    pixels = generated_images(path)
    if isinstance(pixels, SampleFile):
        check_archive(pixels.path)
    request = _request((path if path.is_dir() else path.parent) / _SETTINGS)
    if path.is_dir() and isinstance(pixels, PartImages) and request.get("n") not in (None, pixels.n):
        raise UserError(
            f"{path} holds {pixels.n} of {request['n']} images: run the same command again, it continues there"
        )
    facts = {"kind": "generated images", "path": str(path), **_content(pixels)}
    return EvaluationSet(source, pixels, facts, sampling=_sampling(request) if request.get("n") == pixels.n else {})


def open_reference(
    source: str,
    image_size: int | None = None,
    like: EvaluationSet | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> EvaluationSet:
    """Open what images are compared with: a data source, or a ``.npz`` file with images, statistics or both.

    Args:
        source: as the user wrote it.
        image_size: side of the images of a data source after the centre crop.
        like: samples whose size images get where none is said and the source has no size of its own.
        limit: at most so many images of a data source, balanced over its classes.
        skip_bad: leave out images of a data source that cannot be read.

    Raises:
        UserError: it is missing or damaged, or holds neither.
    """
    path = Path(source).expanduser()
    if _is_data(source) or path.is_dir():
        sized = source.partition(":")[0] not in _SIZELESS
        side = image_size if sized or like is None else image_size or side_of(like)
        return _of_data(source, side, limit, skip_bad)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the reference is a data source (fashion:train, imagefolder:DIR) or a .npz file"
        )
    check_archive(path)
    moments, content = _statistics(path)
    pixels = SampleFile(path) if "arr_0" in content else None
    if pixels is None and not moments:
        raise UserError(
            f"{path} holds neither images (arr_0) nor statistics (mu, sigma), only {', '.join(content) or 'nothing'}"
        )
    facts = {
        "kind": "npz",
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "content": content,
    }
    return EvaluationSet(source, pixels, facts | ({} if pixels is None else {"n": pixels.n}), moments)


def side_of(samples: EvaluationSet) -> int:
    """Return the shorter side of the images."""
    return min(samples.images.shape[1:])


def _is_data(source: str) -> bool:
    from latentlab.data import data_sources

    kinds = {usage.partition(":")[0].partition("[")[0] for usage in data_sources()}
    return source.partition(":")[0] in kinds and not Path(source).expanduser().exists()


def _of_data(source: str, image_size: int | None, limit: int | None = None, skip_bad: bool = False) -> EvaluationSet:
    from latentlab.data import open_data

    images = open_data(source, image_size=image_size, limit=limit, skip_bad=skip_bad)
    pixels, skipped = SetPixels(images), images.skipped
    facts = {"kind": "images", "path": source, **_content(pixels), "skipped": list(skipped)}
    caution = f"{len(skipped)} images of {source} cannot be read and were left out"
    return EvaluationSet(source, pixels, facts, cautions=(caution,) if skipped else ())


def _content(pixels: Pixels) -> dict[str, Any]:
    return {"n": pixels.n, "height": pixels.shape[1], "width": pixels.shape[2], "fingerprint": pixels.fingerprint}


def _statistics(path: Path) -> tuple[dict[str, Moments], dict[str, str]]:
    """Return the statistics in a ``.npz`` file by extractor, and what is in it: name -> type and shape."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = {name.removesuffix(".npy"): _form(archive, name) for name in archive.namelist()}
        with np.load(path, allow_pickle=False) as file:
            moments = {
                extractor: _checked(path, names, file[names[0]], file[names[1]])
                for extractor, names in _STATISTICS.items()
                if names[0] in content and names[1] in content
            }
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{path} is not a readable .npz file, or is damaged ({error})") from error
    return moments, content


def _form(archive: zipfile.ZipFile, name: str) -> str:
    """Return type and shape of one array, without reading it."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return f"{dtype} {list(shape)}"


def _checked(path: Path, names: tuple[str, str], mean: np.ndarray, covariance: np.ndarray) -> Moments:
    numbers = mean.dtype.kind in "fiu" and covariance.dtype.kind in "fiu"
    if not numbers or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: {names[0]} {list(mean.shape)} and {names[1]} {list(covariance.shape)} are no mean and covariance"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {names[0]} or {names[1]} contains NaN or infinity: make the file again")
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))


def _request(settings: Path) -> Mapping[str, Any]:
    """Return what a run was asked for, and how it went under ``record``; empty where no settings are."""
    content = read_json(settings) if settings.exists() else None
    if not isinstance(content, dict) or not isinstance(content.get("request"), dict):
        return {}
    return {**content["request"], "record": content.get("record")}


def _sampling(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a run made its images."""
    sampler = request.get("sampler") or {}
    return {
        "seed": request.get("seed"),
        "generator": request.get("generator"),
        "sampler": sampler,
        "steps": sampler.get("steps"),
        "guidance": {key: value for key, value in sampler.items() if key.startswith(("cfg", "guidance"))},
        "precision": request.get("precision"),
        "request": {key: value for key, value in request.items() if key != "record"},
        "record": request.get("record"),
    }
