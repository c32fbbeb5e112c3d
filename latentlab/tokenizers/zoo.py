"""Which tokenizers can be loaded by name, which release is meant, and which weights are here. Imports no torch."""

from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from latentlab.errors import UserError, unknown_name
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.families import FAMILIES, Shape
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.releases import ZOO
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.weights import WeightFile, converted_copy, find_files, local_copy
from mind import weight_files as mind_files

ENTRY_POINTS = "latentlab.tokenizers"
"""Entry-point group through which other packages add tokenizers: ``name = "package.module:factory"``,
``factory(weights, architecture) -> Tokenizer``; both arguments may be None."""

EMBEDDED = Path(__file__).parent / "weights"
"""Folder of the weights that ship with the package."""


@dataclass(frozen=True)
class ZooEntry:
    """What the list of tokenizers says about one release; None where it is not known before the weights are there.

    Attributes:
        name: of the tokenizer.
        release: of the weights; ``plug-in`` for tokenizers of other packages.
        kind: ``none``, ``kl``, ``vq``, ``vq-cosine``, ``ibq``, ``lfq`` or ``softvq``.
        latent_shape: (c,h,w), or (l,c) of a sequence, for images of the nominal size.
        image_size: that size in pixels.
        codebook_size: number of codes of a discrete tokenizer.
        licence: of the weights.
        source: the published file; None for embedded weights and plug-ins.
        size: bytes of the weight files together, where they are known or here; configuration files do not count.
        size_text: the same in words, rounded where only that is known, ``unknown`` where nothing is; empty of plug-ins.
        path: where the weights are on this machine, or None.
    """

    name: str
    release: str
    kind: str | None = None
    latent_shape: tuple[int, ...] | None = None
    image_size: int | None = None
    codebook_size: int | None = None
    licence: str | None = None
    source: WeightFile | None = None
    size: int | None = None
    size_text: str = ""
    path: Path | None = None

    @property
    def present(self) -> bool:
        """Whether the weights are on this machine."""
        return self.path is not None


def plugins() -> dict[str, metadata.EntryPoint]:
    """Return the tokenizers of other packages by name, none of them imported.

    Raises:
        UserError: one has the name of a built-in tokenizer.
    """
    points = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if clash := sorted(set(points) & set(ZOO)):
        raise UserError(f"a plug-in registers the tokenizer '{clash[0]}', which latentlab has itself: rename it")
    return points


def tokenizer_names() -> list[str]:
    """Return every name `load_tokenizer` knows, built-in ones first."""
    return [*ZOO, *plugins()]


def releases_of(name: str) -> tuple[Release, ...]:
    """Return the releases of a built-in tokenizer, the preferred one first.

    Raises:
        UserError: unknown name, with near misses and the list.
    """
    if name not in ZOO:
        raise unknown_name("tokenizer", name, tokenizer_names())
    return ZOO[name]


def find_release(name: str, release: str) -> Release:
    """Return one release of a built-in tokenizer.

    Raises:
        UserError: unknown tokenizer or release, with near misses and the list.
    """
    found = {known.name: known for known in releases_of(name)}
    if release not in found:
        raise unknown_name(f"release of tokenizer '{name}'", release, found)
    return found[release]


def published_release(name: str, release: str | None = None) -> Release:
    """Return the release called ``release``, else the first published one, else the embedded one there is.

    Raises:
        UserError: unknown tokenizer or release, or a plug-in, which has no releases.
    """
    if name in plugins():
        raise UserError(f"'{name}' is a plug-in: the package that brings it says where its weights come from")
    if release is not None:
        return find_release(name, release)
    releases = releases_of(name)
    return next((known for known in releases if not known.embedded), releases[0])


def published_namesake(name: str) -> str | None:
    """Return the published tokenizer that is easily mistaken for ``name``, of which only embedded weights are known."""
    if name not in ZOO or not all(release.embedded for release in ZOO[name]):
        return None
    published = (other for other, releases in ZOO.items() if not all(release.embedded for release in releases))
    return next((other for other in published if name in (other.replace("-", ""), other.removesuffix("-vae"))), None)


def release_files(release: Release) -> tuple[WeightFile, ...]:
    """Return the published files of a release, the weights first; none of an embedded one."""
    return () if release.weights is None else (release.weights, *release.companions)


def default_release(name: str, data_source_kind: str) -> str | None:
    """Return the release that suits a data source: embedded weights for ``fashion``, published ones for anything else.

    A tokenizer that has only one of the two gives that one; a plug-in has no releases and gives None.

    Args:
        name: of the tokenizer.
        data_source_kind: what stands before the colon of a data source: ``fashion``, ``imagefolder``, ``parquet``, ...

    Raises:
        UserError: unknown tokenizer.
    """
    if name in plugins():
        return None
    if data_source_kind != "fashion":
        return published_release(name).name
    releases = releases_of(name)
    return next((known for known in releases if known.embedded), releases[0]).name


def embedded_path(name: str, release: str) -> Path:
    """Return where the weights of an embedded release lie in the package."""
    return mind_files.embedded_path(release) if name == "mind" else EMBEDDED / f"{name}_{release}.safetensors"


def zoo_entries() -> list[ZooEntry]:
    """Describe every release of every tokenizer, and every plug-in; nothing is downloaded or imported."""
    built_in = [_entry(name, release) for name, releases in ZOO.items() for release in releases]
    return built_in + [ZooEntry(name, "plug-in") for name in plugins()]


def _entry(name: str, release: Release) -> ZooEntry:
    path = local_path(name, release)
    size, text = _size(release, path)
    entry = ZooEntry(
        name,
        release.name,
        licence=release.licence,
        source=release.weights,
        size=size,
        size_text=text,
        path=path,
    )
    if release.family == "mind":
        return entry if path is None else _sphere_entry(entry, path)
    architecture = _architecture(release, path)
    if architecture is None:
        return entry
    return replace(
        entry,
        kind=architecture.quantizer,
        latent_shape=architecture.latent_shape,
        image_size=architecture.resolution,
        codebook_size=architecture.n_embed,
    )


def _size(release: Release, path: Path | None) -> tuple[int | None, str]:
    """Return the bytes of the weight files of a release together, if known, and the same in words."""
    files = [file for file in release_files(release) if not file.filename.endswith(".json")]
    if path is not None:
        places = [local_copy(file) for file in files] or [path]
        known: list[int | None] = [place.stat().st_size for place in places if place is not None]
    else:
        known = [file.size for file in files]
    size = sum(filter(None, known)) if known and None not in known else None
    if size is not None:
        return size, f"{size / 1e6:,.1f} MB"
    rounded = [file.megabytes or (file.size or 0) / 1e6 for file in files]
    return None, f"about {sum(rounded):,.0f} MB" if rounded and all(rounded) else "unknown"


def _sphere_entry(entry: ZooEntry, path: Path) -> ZooEntry:
    """Complete an entry of ``mind`` with what its file says, and the size of images with that of the tokenizer it names."""
    header = mind_files.read_header(path)
    base = header.tokenizer
    return replace(
        entry,
        kind="vq",
        latent_shape=(header.config.embed_dim, *(header.config.grid or (header.config.tokens,))),
        image_size=None if base is None else _entry(base.name, find_release(base.name, base.release)).image_size,
        codebook_size=header.config.vocab_size,
    )


def _architecture(release: Release, path: Path | None) -> Shape | None:
    """Return the published architecture, or what an embedded file records; None when that file is absent."""
    model = FAMILIES[release.family].architecture
    if release.architecture is not None and model is not None:
        return read_architecture(release.architecture, model)
    header = None if path is None else read_weight_metadata(path)
    if header is None or model is None:
        return None
    shape = {name: value for name, value in header.architecture.items() if name in model.model_fields}
    return read_architecture(shape, model)  # without what only training reads


def local_path(name: str, release: Release) -> Path | None:
    """Return where the weights of a release are on this machine, or None; looks, never downloads."""
    if release.weights is not None:
        try:
            return find_release_files(name, release)[0]
        except UserError:  # says that they are not here
            return None
    path = embedded_path(name, release.name)
    return path if path.is_file() else None


def find_release_files(name: str, release: Release, download: bool = False) -> list[Path]:
    """Return where the published files of a release of the tokenizer ``name`` are on this machine, the weights first.

    They need not lie in one folder: what the Hugging Face cache has is taken from there.

    Raises:
        UserError: files are absent and not to be downloaded (names all of them), or of a wrong size.
    """
    command = f"latentlab fetch {name} --release {release.name}"
    return find_files(release_files(release), download, f", for example: {command}; or give --weights PATH")


def find_release_weights(name: str, release: Release) -> Path:
    """Return the weights of a release as they can be read; its other files are on this machine too.

    Raises:
        UserError: a file is absent, or of a wrong size.
    """
    return readable(release, find_release_files(name, release)[0])


def readable(release: Release, path: Path) -> Path:
    """Return what `latentlab convert` made of the published file at ``path`` where that lies beside it, else ``path``."""
    in_one_file = sum(not file.filename.endswith(".json") for file in release_files(release)) == 1
    return (converted_copy(path) if in_one_file else None) or path
