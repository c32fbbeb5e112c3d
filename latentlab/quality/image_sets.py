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
from latentlab.quality.generation import generated_images
from latentlab.quality.sample_file import SampleFile

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
        facts: what it is, as JSON values: path, content, hash or fingerprint.
        sampling: how the images were made, as JSON values; empty when that is not known.
    """

    name: str
    pixels: Pixels | None
    facts: Mapping[str, Any]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

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


def open_samples(source: str, image_size: int | None = None) -> EvaluationSet:
    """Open generated images: a run's folder, a ``.npz`` file, or a data source.

    Args:
        source: as the user wrote it.
        image_size: side of the images of a data source after the centre crop (default: of a folder, the size they have).

    Raises:
        UserError: there are none, the run is unfinished, or a file is damaged.
    """
    if _is_data(source):
        return _of_data(source, image_size or _native_side(source))
    path = Path(source).expanduser()
    if path.is_dir() and not (path / _SETTINGS).exists() and not any(path.glob("samples_*.npz")):
        raise UserError(f"{path} is not the folder of a sampling run: write imagefolder:{path} for a folder of images")
    pixels = generated_images(path)
    facts = {"kind": "generated images", "path": str(path), **_content(pixels)}
    folder = path if path.is_dir() else path.parent
    return EvaluationSet(source, pixels, facts, sampling=_sampling(folder / _SETTINGS, pixels.n))


def open_reference(
    source: str, image_size: int | None = None, like: EvaluationSet | None = None, limit: int | None = None
) -> EvaluationSet:
    """Open what images are compared with: a data source, or a ``.npz`` file with images, statistics or both.

    Args:
        source: as the user wrote it.
        image_size: side of the images of a data source after the centre crop.
        like: samples whose size images get where none is said and the source has no size of its own.
        limit: at most so many images of a data source, balanced over its classes.

    Raises:
        UserError: it is missing or damaged, or holds neither.
    """
    path = Path(source).expanduser()
    if _is_data(source) or path.is_dir():
        sized = source.partition(":")[0] not in _SIZELESS
        return _of_data(source, image_size if sized or like is None else image_size or side_of(like), limit)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: the reference is a data source (fashion:train, imagefolder:DIR) or a .npz file"
        )
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


def _of_data(source: str, image_size: int | None, limit: int | None = None) -> EvaluationSet:
    from latentlab.data import open_data

    pixels = SetPixels(open_data(source, image_size=image_size, limit=limit))
    return EvaluationSet(source, pixels, {"kind": "images", "path": source, **_content(pixels)})


def _native_side(source: str) -> int | None:
    """Return the shorter side of the first image of a folder: images are judged as they are, not enlarged."""
    kind, _, folder = source.partition(":")
    if kind != "imagefolder":
        return None
    from PIL import Image, UnidentifiedImageError

    from latentlab.data.folder import find_images

    root = Path(folder).expanduser()
    if not root.is_dir():
        return None  # which `open_data` explains
    try:
        with Image.open(root / find_images(root).paths[0]) as image:
            return min(image.size)
    except (OSError, UnidentifiedImageError, IndexError):
        return None


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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
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
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: {names[0]} {list(mean.shape)} and {names[1]} {list(covariance.shape)} are no mean and covariance"
        )
    return Moments(mean.astype(np.float64), covariance.astype(np.float64))


def _sampling(settings: Path, n: int) -> dict[str, Any]:
    """Return how a run made its images, from its settings; empty where there are none, or they are of another file."""
    if not settings.exists():
        return {}
    content = read_json(settings)
    request = content.get("request") if isinstance(content, dict) else None
    if not isinstance(request, dict) or request.get("n") != n:
        return {}
    sampler = request.get("sampler") or {}
    return {
        "seed": request.get("seed"),
        "generator": request.get("generator"),
        "sampler": sampler,
        "steps": sampler.get("steps"),
        "guidance": {key: value for key, value in sampler.items() if key.startswith(("cfg", "guidance"))},
        "precision": request.get("precision"),
        "request": request,
        "record": content.get("record"),
    }
