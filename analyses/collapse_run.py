"""One run of the collapse study: views of one image through one bottleneck, judged as it is trained.

Three sets of views are judged: those it is trained on (``fitted``), fresh views of the same image (``heldout_views``) and
views of other images (``heldout_images``). Distances are perceptual and of two kinds: to the tokenizer's own reconstruction,
which isolates the bottleneck, and to the view, which includes what the tokenizer loses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from analyses.bottleneck import EVERY, Bottleneck, Sphere, fit
from analyses.decoding import Decode, Encode, decoded, encoded
from analyses.positions import CodePositions, PatchPositions, Positions, usual_patch
from analyses.views import random_views
from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.pixels import Pixels
from latentlab.randomness import generator

VIEWS = 8
SETS = ("fitted", "heldout_views", "heldout_images")
SHOWN = 4
"""Fitted views that are kept as pictures."""

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What passes through: ``dims`` numbers on a ``sphere``."""

    dims: int = 6
    sphere: Sphere = "pairs"

    def __str__(self) -> str:
        names = {"pairs": "circles", "whole": "one sphere", "none": "no normalisation"}
        return f"{self.dims}-D, {names[self.sphere]}"


@dataclass(frozen=True)
class ViewSet:
    """Views of an image, or of several, and what the tokenizer makes of them.

    Attributes:
        views: [b,3,H,W] in [-1,1].
        latents: un-normalised, in the tokenizer's layout.
        reconstructions: the tokenizer's own, [b,3,H,W].
    """

    views: Tensor
    latents: Tensor
    reconstructions: Tensor


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        parameters: number of trainable parameters.
        positions: rows it was trained on.
        distinct: how many of them differ (ids of a discrete tokenizer; all of them otherwise).
        unseen: share of the held-out rows, by set, whose id was not among the fitted ones; empty for continuous latents.
        iterations: when it was judged, [T].
        latent_norm: mean norm of the fitted latents in the bottleneck, [T].
        curves: set -> ``loss``, ``to_reconstruction``, ``to_view`` and, for ids, ``token_accuracy``, each [T].
        references: distances to compare with: ``other_view`` (a fitted view's reconstruction to that of another one),
            ``uninformed`` (of the mean row or most frequent id everywhere to the reconstruction) and, by set,
            ``tokenizer_SET`` (of the reconstruction to the view).
        pictures: views, reconstructions and bottlenecked decodes of the first fitted views, [3,k,3,H,W] in [-1,1].
    """

    parameters: int
    positions: int
    distinct: int
    unseen: Mapping[str, float]
    iterations: list[int]
    latent_norm: list[float]
    curves: Mapping[str, Mapping[str, list[float]]]
    references: Mapping[str, float]
    pictures: Tensor = field(repr=False)

    def last(self, which: str, kind: str) -> float:
        """Return the end of a curve: ``last("fitted", "to_reconstruction")``."""
        return self.curves[which][kind][-1]


def choose_images(images: Pixels, subjects: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of ``subjects`` images, each for runs of its own, and of up to `VIEWS` others that are held out.

    Both balanced over classes where there are labels; a larger number of subjects keeps those of a smaller one.

    Raises:
        UserError: no subject, or no image is left to hold out.
    """
    if subjects < 1:
        raise UserError(f"a collapse study needs at least 1 image, got {subjects}")
    if images.n <= subjects:
        raise UserError(
            f"{subjects} images to study and at least 1 to hold out make {subjects + 1}, and the set has {images.n}: "
            "give more images or study fewer"
        )
    chosen = choose_subset(images.n, images.labels, subjects, 0)
    return chosen, np.setdiff1d(choose_subset(images.n, images.labels, subjects + VIEWS, 0), chosen)


def make_view_sets(
    images: Pixels, subject: int, others: np.ndarray, encode: Encode, decode: Decode, seed: int
) -> dict[str, ViewSet]:
    """Draw `VIEWS` views of image number ``subject``, as many to hold out, and of the ``others`` [m]; encode and decode them.

    The views depend on the seed and on the number of the image only, so that all bottlenecks and tokenizers get the same.
    """
    image = images.take(np.array([subject])).float()[0]
    chosen = np.resize(others, VIEWS)  # again from the start when there are fewer
    drawn = [random_views(image, VIEWS, generator(seed, "views", name, subject)) for name in SETS[:2]]
    one_each = [
        random_views(other, 1, generator(seed, "views", SETS[2], int(number), i))
        for i, (number, other) in enumerate(zip(chosen, images.take(chosen).float(), strict=True))
    ]
    drawn.append(torch.cat(one_each))
    latents = [encoded(encode, views, "views") for views in drawn]
    return {
        name: ViewSet(views, z, decoded(decode, z, tuple(image.shape)))
        for name, views, z in zip(SETS, drawn, latents, strict=True)
    }


def standardised_positions(sets: Mapping[str, ViewSet], patch: int | None, codes: int) -> PatchPositions:
    """Return positions of continuous latents, standardised per channel over the fitted views (ddof=1)."""
    latents = sets["fitted"].latents
    axes = (0, 2, 3) if latents.ndim == 4 else (0, 1)
    std, mean = torch.std_mean(latents.double(), dim=axes)
    scale = torch.where(std > 0, 1 / std, torch.ones_like(std))
    shape = tuple(latents.shape[1:])
    return PatchPositions(shape, patch or usual_patch(shape), mean, scale, codes)


def positions_of(sets: Mapping[str, ViewSet], codebook: Tensor | None, patch: int | None, codes: int) -> Positions:
    """Return ids where there is a codebook, else standardised patches.

    Raises:
        UserError: a patch for ids, or one that does not fit the grid.
    """
    if codebook is None:
        return standardised_positions(sets, patch, codes)
    if patch is not None:
        raise UserError("patch is for continuous latents: ids are not cut")
    return CodePositions(tuple(sets["fitted"].latents.shape[1:]), codebook)


def run_bottleneck(
    sets: Mapping[str, ViewSet],
    positions: Positions,
    setting: Setting,
    decode: Decode,
    distance: Distance,
    *,
    iterations: int = 1000,
    every: int = EVERY,
    seed: int = 0,
    device: str = "cpu",
) -> Run:
    """Train one bottleneck on the fitted views and judge it on all ``sets`` every ``every`` iterations.

    Args:
        sets: the views, by name (`SETS`).
        positions: how latents become rows.
        setting: the bottleneck.
        decode: the tokenizer's decoder; it gets CPU tensors.
        distance: perceptual distances [b] of two batches of images on ``device``.
        iterations: optimiser steps.
        every: steps between judgements.
        seed: decides the initial weights.
        device: where the bottleneck is trained.

    Raises:
        UserError: an impossible setting, or the training diverged.
    """
    judge = _Judge(sets, positions, decode, distance, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "bottleneck", setting.dims, setting.sphere).initial_seed())
        bottleneck = positions.bottleneck(setting.dims, setting.sphere).to(device)
    fitted = judge.rows["fitted"]
    seen, norms, curves = [], [], {name: {kind: [] for kind in judge.kinds} for name in sets}  # type: ignore[var-annotated]
    for done in fit(bottleneck, fitted, iterations, every):
        with torch.no_grad():
            seen.append(done)
            norms.append(float(bottleneck.latents(fitted).norm(dim=1).mean()))
            pictures, values = judge(bottleneck)
        for name, found in values.items():
            for kind, value in found.items():
                curves[name][kind].append(value)
    shown = sets["fitted"]
    return Run(
        parameters=bottleneck.parameter_count,
        positions=len(fitted),
        distinct=len(fitted.unique(dim=0)),
        unseen=judge.unseen(),
        iterations=seen,
        latent_norm=norms,
        curves=curves,
        references=judge.references(),
        pictures=torch.stack([part[:SHOWN] for part in (shown.views, shown.reconstructions, pictures)]).clamp(-1, 1),
    )


class _Judge:
    """Compares what a bottleneck lets through with views and reconstructions."""

    def __init__(
        self, sets: Mapping[str, ViewSet], positions: Positions, decode: Decode, distance: Distance, device: str
    ) -> None:
        self._sets, self._positions, self._decode = sets, positions, decode
        self._distance, self._device = distance, device
        self.rows = {name: positions.rows(found.latents).to(device) for name, found in sets.items()}
        self.kinds = ("loss", "to_reconstruction", "to_view", *(("token_accuracy",) if positions.discrete else ()))

    def __call__(self, bottleneck: Bottleneck) -> tuple[Tensor, dict[str, dict[str, float]]]:
        """Return the decoded fitted views [b,3,H,W], and by set and kind what is measured."""
        values, images = {}, {}
        for name, found in self._sets.items():
            rows = self.rows[name]
            out = bottleneck.predict(rows)
            images[name] = self._images(out)
            values[name] = {
                "loss": float(bottleneck.loss(rows)),
                "to_reconstruction": self._mean_distance(images[name], found.reconstructions),
                "to_view": self._mean_distance(images[name], found.views),
            }
            if self._positions.discrete:
                values[name]["token_accuracy"] = float((out == rows).double().mean())
        return images["fitted"], values

    def references(self) -> dict[str, float]:
        """Return the distances that a reader needs to judge the others."""
        own = self._sets["fitted"].reconstructions
        blank = self._images(self._positions.uninformed(self.rows["fitted"]))
        turns = range(1, len(own) // 2 + 1)  # every pair of different views
        return {
            "other_view": float(np.mean([self._mean_distance(own, own.roll(turn, 0)) for turn in turns])),
            "uninformed": self._mean_distance(blank, own),
            **{f"tokenizer_{name}": self._mean_distance(s.reconstructions, s.views) for name, s in self._sets.items()},
        }

    def unseen(self) -> dict[str, float]:
        """Return the share of each held-out set's ids that no fitted view has."""
        if not self._positions.discrete:
            return {}
        fitted = self.rows["fitted"]
        return {name: 1 - float(torch.isin(self.rows[name], fitted).double().mean()) for name in SETS[1:]}

    def _images(self, rows: Tensor) -> Tensor:
        """Return what the tokenizer decodes of ``rows``, [b,3,H,W] on the CPU."""
        shape = tuple(self._sets["fitted"].views.shape[1:])
        return decoded(self._decode, self._positions.latents(rows.cpu()), shape)

    @torch.no_grad()
    def _mean_distance(self, first: Tensor, second: Tensor) -> float:
        found = self._distance(first.to(self._device), second.to(self._device))
        return float(found.double().mean())
