"""Tokenizers that can be loaded by name: architecture, releases, weight files, licences, normalisation. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from latentlab.errors import UserError, unknown_name
from latentlab.tokenizers.architecture import AnyArchitecture, Architecture, TinyArchitecture, read_architecture
from latentlab.tokenizers.latent_statistics import VAVAE_MEAN, VAVAE_STD
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.weights import WeightFile, find_weights
from mind import weight_files as mind_files

ENTRY_POINTS = "latentlab.tokenizers"
"""Entry-point group through which other packages add tokenizers: ``name = "package.module:factory"``,
``factory(weights, architecture) -> Tokenizer``; both arguments may be None."""

EMBEDDED = Path(__file__).parent / "weights"
"""Folder of the weights that ship with the package."""


@dataclass(frozen=True)
class Release:
    """One set of weights of a tokenizer.

    Attributes:
        name: unique among the tokenizer's releases.
        licence: of the weights.
        weights: the published file; None for weights that ship with the package.
        companions: further published files, which lie beside ``weights``.
        family: what the architecture's fields describe: ``ldm`` or ``taesd``; ``mind`` for embeddings of another tokenizer's ids.
        architecture: fields of the published configuration; None when the weight file itself records them.
        shift: subtracted from latents by `normalize`, one number or one per channel.
        scale: multiplied by `normalize`.
        statistics: name of a file of per-channel ``mean`` and ``std`` that, beside the weights, replaces shift and scale.
    """

    name: str
    licence: str
    weights: WeightFile | None = None
    architecture: Mapping[str, Any] | None = None
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    statistics: str | None = None
    companions: tuple[WeightFile, ...] = ()
    family: Literal["ldm", "taesd", "mind"] = "ldm"

    @property
    def embedded(self) -> bool:
        """Whether the weights ship with the package."""
        return self.weights is None


_FASHION32 = Release("fashion32", "MIT")

_F16 = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,), "resolution": 256}

_IBQ = _F16 | {"quantizer": "ibq", "num_res_blocks": 4, "z_channels": 256, "embed_dim": 256, "n_embed": 16384}
_VQGAN = _F16 | {"quantizer": "vq", "num_res_blocks": 2, "z_channels": 256, "embed_dim": 256, "n_embed": 16384}
_MAR = _F16 | {
    "quantizer": "kl",
    "double_z": True,
    "num_res_blocks": 2,
    "z_channels": 16,
    "embed_dim": 16,
    "decoder_attn_resolutions": (),
}
_SDVAE = {
    "quantizer": "kl",
    "double_z": True,
    "ch": 128,
    "ch_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "resolution": 256,
    "z_channels": 4,
    "embed_dim": 4,
}
_VAVAE = _F16 | {"quantizer": "kl", "double_z": True, "num_res_blocks": 2, "z_channels": 32, "embed_dim": 32}


_TAESD = "https://raw.githubusercontent.com/madebyollin/taesd/main/"


def _ibq(codes: int, size: int | None = None, sha256: str | None = None) -> Release:
    file = WeightFile(
        repo=f"TencentARC/IBQ-Tokenizer-{codes}", filename=f"imagenet256_{codes}.ckpt", size=size, sha256=sha256
    )
    name = "imagenet256" if codes == 16384 else f"imagenet256-{codes}"
    return Release(name, "Apache-2.0", file, _IBQ | {"n_embed": codes})


def _sdvae(release: str, sha256: str | None = None) -> Release:
    """Return a release of Stable Diffusion's autoencoder; the two share the encoder. The authors' own layout is read as well."""
    file = WeightFile(
        repo=f"stabilityai/sd-vae-{release}",
        filename="diffusion_pytorch_model.safetensors",
        size=334_643_276,
        sha256=sha256,
    )
    return Release(release, "MIT", file, _SDVAE, scale=(0.18215,))


def _tiny(
    release: str,
    file: str,
    architecture: Mapping[str, Any],
    encoder: tuple[int, str] | None = None,
    decoder: tuple[int, str] | None = None,
) -> Release:
    """Return a release of the TAESD family; (size, SHA-256) of the two files where they are known."""
    halves = []
    for half, known in (("encoder", encoder), ("decoder", decoder)):
        size, sha256 = known or (None, None)
        name = f"{file}_{half}.pth"
        halves.append(WeightFile(repo="madebyollin/taesd", filename=name, size=size, sha256=sha256, url=_TAESD + name))
    return Release(release, "MIT", halves[0], architecture, companions=(halves[1],), family="taesd")


ZOO: dict[str, tuple[Release, ...]] = {
    "ae": (_FASHION32,),
    "kl": (_FASHION32,),
    # Shi et al. 2024, arXiv 2412.02692
    "ibq": (
        _FASHION32,
        _ibq(16384, sha256="26ecf8be32c2796edd03d9b1aec1fe1fc18e9dae2ded51ef54b504cc32d05144"),
        _ibq(1024, sha256="68f6d2949a5a646acf0a384941e2ac03f3fbabf8babbe3e0a8659f6368750294"),
        _ibq(8192),
        _ibq(262144),
    ),
    # MIND, arXiv 2606.00094: the points on spheres that it learned for the ids of ``ibq``
    "mind": (Release("fashion32", "MIT", family="mind"),),
    # Esser et al. 2021, arXiv 2012.09841. Copies on the hub of 289 MB are the model with 1024 codes.
    "vqgan-f16": (
        Release(
            "imagenet256",
            "MIT",
            WeightFile(
                repo="CompVis/taming-transformers",
                filename="vqgan_imagenet_f16_16384/ckpts/last.ckpt",
                url="https://heibox.uni-heidelberg.de/f/867b05fc8c4841768640/?dl=1",
            ),
            _VQGAN,
        ),
    ),
    # Li et al. 2024, arXiv 2406.11838
    "mar-kl16": (
        Release(
            "imagenet256",
            "MIT",
            WeightFile(
                repo="jadechoghari/mar",
                filename="kl16.safetensors",
                size=265_856_244,
                sha256="ae6e66b66cce64248cace5aa6cf8bdb3e834947801cbf7e059028592e2b1de31",
            ),
            _MAR,
            scale=(0.2325,),
        ),
    ),
    # Yao et al. 2025, arXiv 2501.01423
    "va-vae": (
        Release(
            "imagenet256",
            "MIT",
            WeightFile(
                repo="hustvl/vavae-imagenet256-f16d32-dinov2",
                filename="vavae-imagenet256-f16d32-dinov2.pt",
                sha256="2088e07378d26047e7bfcbae669feb5d4eab37276f23621db3eebdacc7d82b6b",
            ),
            _VAVAE,
            shift=VAVAE_MEAN,
            scale=tuple(1 / std for std in VAVAE_STD),
            statistics="latents_stats.pt",
        ),
    ),
    # Rombach et al. 2022, arXiv 2112.10752, with the decoders fine-tuned later
    "sd-vae": (
        _sdvae("ft-mse", sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
        _sdvae("ft-ema"),
    ),
    # Tiny autoencoders for the latent spaces of Stable Diffusion 1, 3, FLUX.1 and FLUX.2; releases are named after those.
    "taesd": (_tiny("sd", "taesd", {"latent_channels": 4}),),
    "taesd3": (_tiny("sd3", "taesd3", {"latent_channels": 16}),),
    "taef1": (_tiny("flux1", "taef1", {"latent_channels": 16}),),
    "taef2": (
        _tiny(
            "flux2",
            "taef2",
            {"latent_channels": 32, "pooled": True},
            encoder=(2_704_692, "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6"),
            decoder=(2_704_756, "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5"),
        ),
    ),
}

MODELS: dict[str, type[Architecture] | type[TinyArchitecture]] = {"ldm": Architecture, "taesd": TinyArchitecture}
"""What the architecture's fields of each family of releases are checked against."""


@dataclass(frozen=True)
class ZooEntry:
    """What the list of tokenizers says about one release; None where it is not known before the weights are there.

    Attributes:
        name: of the tokenizer.
        release: of the weights; ``plug-in`` for tokenizers of other packages.
        kind: ``none``, ``kl``, ``vq`` or ``ibq``.
        latent_shape: (c,h,w) for images of the nominal size.
        image_size: that size in pixels.
        codebook_size: number of codes of a discrete tokenizer.
        licence: of the weights.
        source: the published file; None for embedded weights and plug-ins.
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
    wanted = data_source_kind == "fashion"
    releases = releases_of(name)
    return next((known for known in releases if known.embedded == wanted), releases[0]).name


def embedded_path(name: str, release: str) -> Path:
    """Return where the weights of an embedded release lie in the package."""
    return mind_files.embedded_path(release) if name == "mind" else EMBEDDED / f"{name}_{release}.safetensors"


def zoo_entries() -> list[ZooEntry]:
    """Describe every release of every tokenizer, and every plug-in; nothing is downloaded or imported."""
    built_in = [_entry(name, release) for name, releases in ZOO.items() for release in releases]
    return built_in + [ZooEntry(name, "plug-in") for name in plugins()]


def _entry(name: str, release: Release) -> ZooEntry:
    path = local_path(name, release)
    entry = ZooEntry(name, release.name, licence=release.licence, source=release.weights, path=path)
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


def _architecture(release: Release, path: Path | None) -> AnyArchitecture | None:
    """Return the published architecture, or what an embedded file records; None when that file is absent."""
    if release.architecture is not None:
        return read_architecture(release.architecture, MODELS[release.family])
    header = None if path is None else read_weight_metadata(path)
    return None if header is None else read_architecture(header.architecture, Architecture)


def local_path(name: str, release: Release) -> Path | None:
    """Return where the weights of a release are on this machine, or None; looks, never downloads."""
    if release.weights is not None:
        try:
            return find_release_weights(release)
        except UserError:  # says that they are not here
            return None
    path = embedded_path(name, release.name)
    return path if path.is_file() else None


def find_release_weights(release: Release, download: bool = False) -> Path:
    """Return where the published file of a release is on this machine; its companions are there too.

    Raises:
        UserError: a file is absent and not to be downloaded, or wrong.
    """
    assert release.weights is not None
    path = find_weights(release.weights, download)
    for companion in release.companions:
        find_weights(companion, download)
    return path
