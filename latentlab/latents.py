"""Latents of a set of images as the measurements see them: streamed, channel first, with labels, masks and codes.

Shape legend of the package: n images, b images of one batch, c channels, h w grid, l tokens of a 1-D latent,
s = h*w or l cells, k classes, v vocabulary, d = c*s dimensions of a flattened latent.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError

ArrayLike = np.ndarray | Tensor | Sequence[Any]

BATCH_BYTES = 8 << 20
"""Batches are cut so that one holds about this many bytes: large enough to be fast, small enough not to matter.

Temporaries of 32 MB and more would be several times slower: the C library returns such blocks to the system at once, so that
every batch pays for fresh pages again.
"""


@dataclass(frozen=True)
class TokenizerSpec:
    """What a store must remember about the tokenizer that made its latents."""

    name: str
    release: str
    kind: Literal["continuous", "vq", "lfq"]
    layout: Literal["grid", "sequence"]
    channels: int
    downsampling: int | None = None
    codebook_size: int | None = None
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    weights_sha256: str | None = None

    @property
    def discrete(self) -> bool:
        """Whether latents are entries of a codebook."""
        return self.kind != "continuous"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and standard deviation (ddof=1) of each channel over all images and cells, float64 [c]."""

    mean: Tensor
    std: Tensor

    def standardise(self, latents: Tensor) -> Tensor:
        """Return ``(latents - mean) / std`` per channel of [b,c,...], in the dtype of ``latents``; constant channels become 0."""
        shape = (1, -1) + (1,) * (latents.ndim - 2)
        std = torch.where(self.std > 0, self.std, torch.ones_like(self.std))
        mean, inverse = (v.to(latents).view(shape) for v in (self.mean, 1 / std))
        return (latents - mean).mul_(inverse)

    @property
    def offset(self) -> Tensor:
        """What to subtract from each channel before float32 sums, so that a large mean costs no digits, float64 [c].

        All 0 when no mean exceeds twice its standard deviation: then nothing is lost, and callers save a pass.
        """
        large = self.mean.abs() > 2 * self.std
        return self.mean if large.any() else torch.zeros_like(self.mean)


class Latents(ABC):
    """A set of latents. Subclasses say where they live; the measurements use only what is here.

    Attributes:
        n: number of images.
        shape: shape of one latent, channel first: (c,h,w) for a grid, (c,l) for a sequence.
        labels: int64 [n], or None.
        class_names: names by label, or None.
        spec: the tokenizer that made them, or None when unknown.
        fingerprint: changes when the content changes.
        has_masks: whether `masks` may be called.
        has_codes: whether `codes` may be called.
    """

    n: int
    shape: tuple[int, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    spec: TokenizerSpec | None = None
    fingerprint: str
    has_masks: bool = False
    has_codes: bool = False

    @abstractmethod
    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents at ``indices``, [b,c,h,w] or [b,c,l], float32 (float64 when they were given so)."""

    def masks(self, indices: np.ndarray | slice) -> Tensor:
        """Return the foreground masks at ``indices``, bool [b,H,W] at image or latent resolution."""
        raise UserError("these latents have no masks")

    def codes(self, indices: np.ndarray | slice) -> Tensor:
        """Return the codebook indices at ``indices``, int64 [b,h,w] or [b,l]."""
        raise UserError("these latents have no codes")

    @property
    def channels(self) -> int:
        """Number of channels c."""
        return self.shape[0]

    @property
    def cells(self) -> int:
        """Number of cells s = h*w, or tokens l."""
        return int(np.prod(self.shape[1:]))

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w), or None for a sequence, which has no spatial order."""
        return (self.shape[1], self.shape[2]) if len(self.shape) == 3 else None

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """Yield all latents in order, ``size`` images (default: about 8 MB) at a time."""
        for part in self.slices(size):
            yield self.take(part)

    def slices(self, size: int | None = None) -> Iterator[slice]:
        """Yield the index ranges of `batches`."""
        size = size or max(1, BATCH_BYTES // (4 * self.channels * self.cells))
        for start in range(0, self.n, size):
            yield slice(start, min(start + size, self.n))

    @cached_property
    def moments(self) -> ChannelMoments:
        """Per-channel mean and standard deviation over the whole set, in one pass.

        Raises:
            UserError: latents contain NaN or infinity (how many images, and the first one), or there is only one number
                per channel.
        """
        return channel_moments(self)


def tokenizer_layout(batch: Tensor) -> Tensor:
    """Return latents as tokenizers and files have them, [b,c,h,w] or [b,l,c], of a batch [b,c,h,w] or [b,c,l] of `Latents`."""
    return batch.transpose(1, 2) if batch.ndim == 3 else batch


def channel_moments(latents: Latents) -> ChannelMoments:
    """Return mean and ddof=1 standard deviation per channel over images and cells."""
    count = latents.n * latents.cells
    if count < 2:
        raise UserError(f"statistics need at least 2 numbers per channel, got {count}: give more images")
    shift = None
    total, squares = (torch.zeros(latents.channels, dtype=torch.float64) for _ in range(2))
    for batch in latents.batches():
        rows = batch.flatten(2)
        if shift is None:  # close to the mean, so that E[x^2] - E[x]^2 does not cancel
            std, mean = torch.std_mean(rows.double(), dim=(0, 2), correction=0)
            shift = torch.nan_to_num(ChannelMoments(mean, std).offset, posinf=0.0, neginf=0.0)
            shift = shift.to(rows).double()  # exactly what is subtracted below
        if shift.any():
            rows = rows - shift.to(rows)[:, None]
        # Sums over the cells of one image in the latents' precision, sums over images in float64.
        total += rows.sum(2).sum(0, dtype=torch.float64)
        squares += torch.linalg.vector_norm(rows, dim=2).double().square().sum(0)
    assert shift is not None
    if not (torch.isfinite(total).all() and torch.isfinite(squares).all()):
        _refuse_non_finite(latents)
    mean = total / count
    variance = ((squares - count * mean**2) / (count - 1)).clamp_min(0)
    return ChannelMoments(mean + shift, variance.sqrt())


def _refuse_non_finite(latents: Latents) -> None:
    bad: list[int] = []
    for part in latents.slices():
        finite = torch.isfinite(latents.take(part)).flatten(1).all(1)
        bad += (part.start + torch.nonzero(~finite).flatten()).tolist()
    if bad:
        raise UserError(
            f"{len(bad)} of {latents.n} latents contain NaN or infinity (first: image {bad[0]}): encode them again in "
            "float32, or leave these images out"
        )
    raise UserError("latents are too large for float32 sums (above 1e18): rescale them")


class ArrayLatents(Latents):
    """Latents in memory: [n,c,h,w], [n,l,c], or [n,c] (one vector per image); numpy or torch, not copied."""

    def __init__(
        self,
        latents: ArrayLike,
        labels: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        class_names: tuple[str, ...] | None = None,
        spec: TokenizerSpec | None = None,
    ) -> None:
        """Check shapes and wrap.

        Raises:
            UserError: wrong rank, not numbers, empty, or labels, masks or codes of another length.
        """
        self._latents = tensor_of("latents", latents)
        if self._latents.ndim == 2:
            self._latents = self._latents[:, None]
        if self._latents.ndim not in (3, 4):
            raise UserError(f"latents must be [n,c,h,w], [n,l,c] or [n,c], got shape {list(self._latents.shape)}")
        if not self._latents.is_floating_point():
            raise UserError(f"latents must be floating point, got {self._latents.dtype}")
        if self._latents.numel() == 0:
            raise UserError(f"latents are empty, shape {list(self._latents.shape)}")
        self.n = len(self._latents)
        self._sequence = self._latents.ndim == 3
        item = tuple(self._latents.shape[1:])
        self.shape = (item[1], item[0]) if self._sequence else item
        self.labels = None if labels is None else self._labels(labels)
        self._masks = None if masks is None else _countable(self._of_length("masks", masks))
        if self._masks is not None and self._masks.ndim != 3:
            raise UserError(f"masks must be [n,H,W], got shape {list(self._masks.shape)}")
        floating = self._masks is not None and self._masks.is_floating_point()  # others cannot hold NaN
        if self._masks is not None and floating and not torch.isfinite(self._masks).all():
            raise UserError("masks contain NaN or infinity: give True for foreground and False for background")
        if self._masks is not None and self._masks.dtype != torch.bool and float(self._masks.max()) > 255:
            # ImageNet-S writes class numbers, 1000 for "ignore": counted as above 0 it would be foreground.
            raise UserError(
                f"masks hold values up to {float(self._masks.max()):g}: class numbers? Give True for foreground, and False "
                "for background and for what is to be ignored (1000 in ImageNet-S)"
            )
        self._codes = None if codes is None else self._codes_of(codes)
        self.has_masks, self.has_codes = masks is not None, codes is not None
        self.class_names, self.spec = class_names, spec

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of shape, dtype and bytes of the latents, and of the labels."""
        import hashlib

        seen = hashlib.sha256(f"{tuple(self._latents.shape)} {self._latents.dtype}".encode())
        for part in self.slices():
            seen.update(self.take(part).numpy().tobytes())
        if self.labels is not None:
            seen.update(self.labels.tobytes())
        return seen.hexdigest()[:16]

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents at ``indices``; a view when they are a slice of float32 or float64 grids."""
        chosen = self._latents[indices].cpu()
        if self._sequence:
            chosen = chosen.transpose(1, 2)
        dtype = torch.float64 if chosen.dtype == torch.float64 else torch.float32
        return chosen.to(dtype).contiguous()

    def masks(self, indices: np.ndarray | slice) -> Tensor:
        """Return the masks at ``indices``, bool [b,H,W]."""
        if self._masks is None:
            return super().masks(indices)
        chosen = self._masks[indices].cpu()
        return chosen if chosen.dtype == torch.bool else chosen > 0

    def codes(self, indices: np.ndarray | slice) -> Tensor:
        """Return the codes at ``indices``, int64."""
        if self._codes is None:
            return super().codes(indices)
        return self._codes[indices].cpu().long()

    def _labels(self, labels: ArrayLike) -> np.ndarray:
        tensor = self._of_length("labels", labels)
        if tensor.ndim != 1:
            raise UserError(f"labels must be [n], got shape {list(tensor.shape)}")
        return integer_labels(tensor, "labels")

    def _codes_of(self, codes: ArrayLike) -> Tensor:
        tensor = self._of_length("codes", codes)
        if tensor.ndim not in (2, 3) or tensor.is_floating_point() or tensor.is_complex():
            raise UserError(
                f"codes must be integers [n,h,w] or [n,l], got {tensor.dtype} of shape {list(tensor.shape)}"
            )
        return tensor

    def _of_length(self, name: str, values: ArrayLike) -> Tensor:
        tensor = tensor_of(name, values)
        if tensor.ndim == 0 or len(tensor) != self.n:
            got = len(tensor) if tensor.ndim else "a single number"
            raise UserError(f"{name} must have one entry per latent: got {got} for {self.n} latents")
        return tensor


class _GridView(Latents):
    """1-D tokens laid out on a grid, row by row."""

    def __init__(self, tokens: Latents, grid: tuple[int, int]) -> None:
        self._tokens = tokens
        self.n, self.shape = tokens.n, (tokens.channels, *grid)
        self.labels, self.class_names, self.spec = tokens.labels, tokens.class_names, tokens.spec
        self.has_masks, self.has_codes = tokens.has_masks, tokens.has_codes
        self.masks, self.codes = tokens.masks, tokens.codes  # type: ignore[method-assign]

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Fingerprint of the tokens and the grid."""
        return f"{self._tokens.fingerprint}-{self.shape[1]}x{self.shape[2]}"

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents at ``indices``, [b,c,h,w]."""
        return self._tokens.take(indices).unflatten(2, self.shape[1:])


def _countable(values: Tensor) -> Tensor:
    """Return ``values`` in a type that torch can order: of the unsigned ones it orders bytes only."""
    return values.to(torch.int64) if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def on_grid(latents: Latents, grid: tuple[int, int] | None, name: str) -> Latents:
    """Return ``latents`` if they have a grid, else their tokens laid out row by row on ``grid``.

    Args:
        latents: any.
        grid: rows and columns for 1-D tokens; None for latents that have a grid.
        name: of the measurement that needs it, for the message.

    Raises:
        UserError: 1-D tokens without a grid, a grid of another number of cells, or a second grid.
    """
    if latents.grid is not None:
        if grid is not None and tuple(grid) != latents.grid:
            raise UserError(f"grid is for 1-D tokens, and these latents have the grid {latents.grid}: leave it out")
        return latents
    if grid is None:
        raise UserError(
            f"'{name}' needs a grid, and these latents are {latents.cells} 1-D tokens, which have no place in the image: "
            "it is not defined for them, unless you choose a layout with grid=(rows, columns)"
        )
    if min(grid) < 1 or grid[0] * grid[1] != latents.cells:
        raise UserError(f"grid {grid[0]}x{grid[1]} does not hold {latents.cells} tokens")
    return _GridView(latents, (grid[0], grid[1]))


def integer_labels(labels: Tensor, where: str) -> np.ndarray:
    """Return ``labels`` [n] as int64.

    Raises:
        UserError: complex, fractional, or too large; ``where`` says which labels.
    """
    integral = not labels.is_complex() and (not labels.is_floating_point() or torch.equal(labels, labels.round()))
    if not integral or (labels.is_floating_point() and labels.abs().max() >= 2**53):
        raise UserError(f"{where} must be integers")
    return labels.cpu().numpy().astype(np.int64)


def tensor_of(name: str, values: ArrayLike) -> Tensor:
    """Return ``values`` as a tensor that shares memory where it can."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        backwards = any(step < 0 for step in array.strides)
        if backwards or not array.flags.writeable or not array.dtype.isnative:  # memory that torch cannot share
            array = array.astype(array.dtype.newbyteorder("="), copy=True)
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be read as an array of numbers: {error}") from error
