"""Latents as rows, one per position: what a bottleneck takes in and gives back.

Continuous latents are normalised and cut into patches, [positions, D]; those of a discrete tokenizer are ids, [positions].
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from analyses.bottleneck import Bottleneck, ContinuousBottleneck, DiscreteBottleneck, Sphere, hidden_width
from latentlab.errors import UserError

PATCH_WIDTH = 16
"""Numbers of one position in the published study: a 2x2 patch of SD-VAE's 4 channels."""

_SEARCH_ROWS = 4096


class Positions(ABC):
    """How the latents of one tokenizer become rows, and rows latents again."""

    discrete: bool

    @abstractmethod
    def rows(self, latents: Tensor) -> Tensor:
        """Return the rows of latents [b,c,h,w] or [b,l,c]."""

    @abstractmethod
    def latents(self, rows: Tensor) -> Tensor:
        """Return un-normalised latents in the tokenizer's layout."""

    @abstractmethod
    def bottleneck(self, dims: int, sphere: Sphere) -> Bottleneck:
        """Return a fresh bottleneck for these rows."""

    @abstractmethod
    def uninformed(self, rows: Tensor) -> Tensor:
        """Return rows that tell nothing about a position: the mean of all, or the most frequent id."""


class PatchPositions(Positions):
    """Continuous latents: ``(z - shift) * scale`` per channel, then patches of ``patch`` x ``patch`` cells."""

    discrete = False

    def __init__(self, shape: tuple[int, ...], patch: int, shift: Tensor, scale: Tensor, codes: int) -> None:
        """Describe latents of one image.

        Args:
            shape: (c,h,w), or (l,c) for 1-D tokens.
            patch: side of a patch in cells.
            shift: subtracted per channel, [c] or [1].
            scale: multiplied per channel, [c] or [1].
            codes: vocabulary of the discrete bottleneck whose number of parameters is to be matched.

        Raises:
            UserError: the grid cannot be cut into such patches.
        """
        self.shape, self.patch, self.codes = shape, patch, codes
        self.width = patch_width(shape, patch)
        per_channel = (-1, 1, 1) if len(shape) == 3 else (-1,)
        self._shift, self._scale = (values.float().view(per_channel) for values in (shift, scale))

    def rows(self, latents: Tensor) -> Tensor:
        """Return [positions, D], a patch's numbers in the order (channel, row, column)."""
        z = (latents.float() - self._shift) * self._scale
        if len(self.shape) == 2:
            return z.flatten(0, 1)
        p, (c, h, w) = self.patch, self.shape
        return z.reshape(-1, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, self.width)

    def latents(self, rows: Tensor) -> Tensor:
        """Invert `rows`."""
        if len(self.shape) == 2:
            return rows.reshape(-1, *self.shape) / self._scale + self._shift
        p, (c, h, w) = self.patch, self.shape
        z = rows.reshape(-1, h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(-1, c, h, w)
        return z / self._scale + self._shift

    def bottleneck(self, dims: int, sphere: Sphere) -> ContinuousBottleneck:
        """Return a continuous bottleneck with the number of parameters of the discrete one."""
        return ContinuousBottleneck(self.width, dims, hidden_width(self.width, dims, self.codes), sphere)

    def uninformed(self, rows: Tensor) -> Tensor:
        """Return the mean row, everywhere."""
        return rows.mean(0).expand_as(rows)


class CodePositions(Positions):
    """Latents of a discrete tokenizer: the id of the nearest code."""

    discrete = True

    def __init__(self, shape: tuple[int, ...], codebook: Tensor) -> None:
        """Describe latents of one image, (c,h,w) or (l,c), which are rows of ``codebook`` [v,c]."""
        self.shape, self.codebook = shape, codebook.float()

    def rows(self, latents: Tensor) -> Tensor:
        """Return ids, int64 [positions]."""
        vectors = (latents.movedim(1, -1) if len(self.shape) == 3 else latents).float().flatten(0, -2)
        ids = torch.cat([torch.cdist(part, self.codebook).argmin(1) for part in vectors.split(_SEARCH_ROWS)])
        # The quick distances lose digits: what is not exactly its code is looked up again, slowly.
        doubtful = (self.codebook[ids] != vectors).any(1)
        for part in torch.nonzero(doubtful).flatten().split(_SEARCH_ROWS // 64):
            exact = torch.cdist(vectors[part], self.codebook, compute_mode="donot_use_mm_for_euclid_dist")
            ids[part] = exact.argmin(1)
        return ids

    def latents(self, rows: Tensor) -> Tensor:
        """Return the code vectors of ids."""
        codes = self.codebook[rows]
        if len(self.shape) == 2:
            return codes.view(-1, *self.shape)
        c, h, w = self.shape
        return codes.view(-1, h, w, c).movedim(-1, 1)

    def bottleneck(self, dims: int, sphere: Sphere) -> DiscreteBottleneck:
        """Return a discrete bottleneck over the whole vocabulary."""
        return DiscreteBottleneck(len(self.codebook), dims, sphere)

    def uninformed(self, rows: Tensor) -> Tensor:
        """Return the most frequent id, everywhere."""
        return rows.mode().values.expand_as(rows)


def patch_width(shape: tuple[int, ...], patch: int) -> int:
    """Return how many numbers a patch of ``patch`` x ``patch`` cells has.

    Args:
        shape: (c,h,w) of a latent, or (l,c) for 1-D tokens, which are not cut.
        patch: side of a patch in cells.

    Raises:
        UserError: the latent cannot be cut into such patches.
    """
    grid = shape[1:] if len(shape) == 3 else (1, 1)
    if patch < 1 or any(side % patch for side in grid):
        what = f"a grid of {grid[0]}x{grid[1]}" if len(shape) == 3 else "a sequence of 1-D tokens"
        raise UserError(f"{what} cannot be cut into patches of {patch}x{patch} cells: choose another patch")
    return (shape[0] if len(shape) == 3 else shape[1]) * patch**2


def usual_patch(shape: tuple[int, ...], discrete_cells: int | None = None) -> int:
    """Return the patch that makes the positions of continuous latents comparable.

    With a discrete counterpart of ``discrete_cells`` positions per image: the patch that gives as many, as in the published
    study (SD-VAE's 32x32 grid in 2x2 patches, IBQ's 16x16). Alone: 2 where a patch then has at most 16 numbers, as there.

    Args:
        shape: (c,h,w) of a latent, or (l,c) for 1-D tokens, which are not cut.
        discrete_cells: positions of one image in the discrete tokenizer.
    """
    if len(shape) == 2:
        return 1
    channels, height, width = shape
    if discrete_cells is not None:
        patch = round((height * width / discrete_cells) ** 0.5)
        fits = patch > 0 and height % patch == 0 and width % patch == 0
        return patch if fits and height * width == discrete_cells * patch**2 else 1
    return 2 if 4 * channels <= PATCH_WIDTH and height % 2 == 0 and width % 2 == 0 else 1
