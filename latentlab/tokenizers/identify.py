"""What weights are that a user gave: the published file in a folder, and the release whose hash it has. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.zoo import find_release, release_files, releases_of
from latentlab.weight_file import WeightFile

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
    """Yield where a published file may lie, each place once."""
    for relative in dict.fromkeys((filename, PurePosixPath(filename).name)):
        converted = (folder / relative).with_suffix(".safetensors")
        yield from dict.fromkeys((converted, folder / relative))


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
    return replace((alike or published or list(releases))[0], name=CUSTOM)


def _has_hashes(release: Release, path: Path) -> bool:
    """Whether every weight file of the release has its published hash; none is known of most of them."""
    files = [file for file in release_files(release) if not file.filename.endswith(".json")]
    if len(files) == 1:
        return _fits(files, [path])
    folder = path if path.is_dir() else path.parent
    return _fits(files, [folder / file.filename for file in files])


def _fits(files: Sequence[WeightFile], paths: Sequence[Path]) -> bool:
    pairs = list(zip(files, paths, strict=True))
    if not all(file.sha256 and path.is_file() for file, path in pairs):
        return False
    if any(file.size not in (None, path.stat().st_size) for file, path in pairs):
        return False
    return all(file_sha256(path) == file.sha256 for file, path in pairs)
