"""What weights are that a user gave: the published file in a folder, and the release whose hash it has. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from latentlab.errors import UserError
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.zoo import find_release, release_files, releases_of
from latentlab.weight_file import WeightFile
from latentlab.weights import original_of

CUSTOM = "custom"
"""Release that is recorded for weights of which nobody said, and no published hash shows, which ones they are."""


def published_file(name: str, folder: Path, release: str | None = None) -> Path:
    """Return the published weight file of the tokenizer ``name`` in ``folder``, as a download from the hub leaves it there.

    A file that `latentlab convert` made of it, beside it, comes first. The TAESD family, whose weights are two files, and
    tokenizers without published files get their folder back: their loaders say what they want.

    Args:
        name: of the tokenizer.
        folder: holds the file, or the folder that the repository has it in.
        release: look for this one's file only; None for those of all.

    Raises:
        UserError: no such file there, or those of several releases.
    """
    known = releases_of(name) if release in (None, CUSTOM) else (find_release(name, str(release)),)
    published = [one for one in known if one.weights is not None]
    if not published or published[0].family == "taesd":
        return folder
    names = list(dict.fromkeys(one.weights.filename for one in published if one.weights is not None))
    found = [path for filename in names for path in _places(folder, filename) if path.is_file()]
    stems = dict.fromkeys(path.with_suffix("") for path in found)
    if not found:
        raise UserError(
            f"{folder} has no weights of '{name}': expected {' or '.join(names)} in it; or give the file itself"
        )
    if len(stems) > 1:
        listed = ", ".join(str(path.relative_to(folder)) for path in found)
        raise UserError(
            f"{folder} has weights of several releases of '{name}' ({listed}): give the file, or say the release"
        )
    return found[0]


def _places(folder: Path, filename: str) -> Iterator[Path]:
    """Yield where a published file, or the checkpoint that a published safetensors file was made of, may lie; each place once."""
    for relative in dict.fromkeys((filename, PurePosixPath(filename).name)):
        converted = (folder / relative).with_suffix(".safetensors")
        yield from dict.fromkeys((converted, folder / relative, converted.with_suffix(".ckpt")))


def release_of_file(name: str, path: Path) -> Release:
    """Return the release that the weights at ``path`` are, by their published SHA-256.

    Others get the architecture of the release whose file has that name, else of the first published one, and are called
    `CUSTOM`: latents of unknown weights must not pass for those of known ones.

    Raises:
        UserError: unknown tokenizer.
    """
    releases = releases_of(name)
    published = [known for known in releases if known.weights is not None]
    same = next((known for known in published if _has_hashes(known, path)), None)
    return same or custom_release(name, path)


def custom_release(name: str, path: Path) -> Release:
    """Return what is assumed of weights that are nobody's release.

    Raises:
        UserError: unknown tokenizer.
    """
    releases = releases_of(name)
    published = [known for known in releases if known.weights is not None]
    alike = [known for known in published if known.weights and PurePosixPath(known.weights.filename).stem == path.stem]
    assumed = (alike or published or list(releases))[0]
    return replace(assumed, name=CUSTOM, architecture=_without_statistics(assumed.architecture))


def _without_statistics(architecture: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the fields of a release without the mean and deviation of its latents: other weights have others."""
    if architecture is None:
        return None
    return {name: value for name, value in architecture.items() if name not in ("vq_mean", "vq_std")}


def confirmed(release: Release, path: Path) -> Release:
    """Return ``release``, which somebody said the weights at ``path`` are, or `CUSTOM` if their hash shows that they are not."""
    altered = any(file.sha256 and other.is_file() and _differs(file, other) for file, other in _pairs(release, path))
    return replace(release, name=CUSTOM) if altered else release


def check_unaltered(release: Release, paths: Sequence[Path]) -> None:
    """Raise `UserError` unless the files of ``release`` at ``paths`` are the published ones, as far as hashes are known."""
    for file, path in zip(release_files(release), paths, strict=True):
        if wrong := file.misfit(path):
            raise UserError(f"{path} {wrong}: it is not the published file; delete it and fetch again")


def _has_hashes(release: Release, path: Path) -> bool:
    """Whether every weight file of the release has its published hash; none is known of most of them."""
    return all(file.sha256 and other.is_file() and not _differs(file, other) for file, other in _pairs(release, path))


def _pairs(release: Release, path: Path) -> list[tuple[WeightFile, Path]]:
    """Return the weight files of a release, each with its place if ``path`` is the release: one of them, or their folder."""
    files = [file for file in release_files(release) if not file.filename.endswith(".json")]
    if len(files) == 1:
        return [(files[0], path)]
    folder = path if path.is_dir() else path.parent
    return [(file, folder / file.filename) for file in files]


def _differs(file: WeightFile, path: Path) -> bool:
    """Whether ``path``, or the checkpoint beside it that it was converted from, has not the published size and hash."""
    return file.misfit(original_of(path) or path) is not None
