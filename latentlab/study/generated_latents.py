"""The latents that generated images were decoded from: kept beside them, since images alone do not show which half failed.

`mind.generate.generate` asks its generator for batches of images. Here the generator writes every batch's latents before it
hands the images on, so whatever images survive a kill, their latents do too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import atomic_path
from latentlab.latents import ArrayLatents
from latentlab.tokenizers.base import DiscreteTokenizer
from latentlab.weights import read_state_dict
from mind.generate import Drawn, Generated, generate

FILE, PARTS = "latents.safetensors", "latent_parts"


class LatentKeeper:
    """A generator (`mind.generate.ImageGenerator`) that writes the latents of every batch it draws.

    Attributes:
        generator: draws; MIND or a baseline.
        folder: of the parts, one per batch, named after their first sample.
    """

    def __init__(self, generator: Any, folder: Path) -> None:
        self.generator, self.folder = generator, folder
        self.num_classes, self.batch_size = generator.num_classes, generator.batch_size
        self.device, self.batch_dependent = generator.device, generator.batch_dependent

    def facts(self) -> Mapping[str, Any]:
        """Return what determines its samples: as without keeping latents."""
        facts: Mapping[str, Any] = self.generator.facts()
        return facts

    def draw(self, labels: Tensor, indices: Tensor, seed: int) -> Drawn:
        """Return the images of a batch, and keep their latents."""
        with torch.inference_mode():
            sampled, evaluations = self.generator.sample(labels, indices, seed)
            images = self.generator.decode(sampled)
            latents = self._as_stored(sampled).float().cpu().contiguous()
        with atomic_path(self.folder / f"{int(indices[0]):08d}.safetensors") as temporary:
            save_file({"latents": latents, "numbers": indices.cpu().contiguous()}, temporary)
        return Drawn(images, evaluations)

    def latents(self, labels: np.ndarray, seed: int) -> Tensor:
        """Return the latents of samples 0, 1, ... of these classes [n]; those whose parts are gone are drawn again.

        Raises:
            UserError: parts are gone, and samples depend on the others of their batch.
        """
        rows: dict[int, Tensor] = {}
        self._collect(rows)
        missing = [i for i in range(len(labels)) if i not in rows]
        if missing and self.batch_dependent:
            raise UserError(
                f"{self.folder} lacks latents that cannot be drawn again alone: delete {self.folder.parent}"
            )
        for first in range(0, len(missing), self.batch_size):
            numbers = torch.tensor(missing[first : first + self.batch_size])
            self.draw(torch.from_numpy(labels)[numbers], numbers, seed)
        if missing:
            self._collect(rows)
        return torch.stack([rows[i] for i in range(len(labels))])

    def _collect(self, rows: dict[int, Tensor]) -> None:
        for file in sorted(self.folder.glob("*.safetensors")):
            part = read_state_dict(file)
            rows.update(zip(part["numbers"].tolist(), part["latents"], strict=True))

    def _as_stored(self, sampled: Tensor) -> Tensor:
        """Return un-normalised latents [b,c,h,w] or [b,l,c] of what the sampler gives: normalised latents, or codes."""
        affine = getattr(self.generator, "affine", None)
        if affine is not None:
            restored: Tensor = affine.restore(sampled.float())
            return restored
        tokenizer = self.generator.tokenizer
        assert isinstance(tokenizer, DiscreteTokenizer)  # which generators of codes have checked
        network = getattr(self.generator, "network", None)
        grid = self.generator.grid if network is None else network.config.sides
        return tokenizer.codes(sampled.view(len(sampled), *grid))


def generate_with_latents(generator: Any, out: Path, *, n: int, seed: int = 0, **asked: Any) -> Generated:
    """Make images as `mind.generate.generate` does, and leave their latents in ``out/latents.safetensors``.

    Latents are un-normalised, as in the store of the tokenizer: [n,c,h,w] or [n,l,c]; of generators of codes they are the code
    vectors. An interrupted call is continued; on one process only.

    Args:
        generator: as `mind.kinds.open_weights` returns it.
        out: folder of the run.
        n: number of images.
        seed: of labels and noise.
        asked: further arguments of `mind.generate.generate`.

    Raises:
        UserError: as `mind.generate.generate`.
    """
    keeper = LatentKeeper(generator, out / PARTS)
    made = generate(keeper, out, n=n, seed=seed, **asked)
    if not (out / FILE).exists():
        assert made.images.labels is not None
        labels = made.images.labels
        with atomic_path(out / FILE) as temporary:
            save_file({"latents": keeper.latents(labels, seed), "labels": torch.from_numpy(labels)}, temporary)
    for part in (out / PARTS).glob("*"):
        part.unlink()
    return made


def read_generated_latents(folder: Path) -> ArrayLatents:
    """Return the latents that `generate_with_latents` left in a folder, with the classes that were asked for.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {FILE}: its images were made without keeping latents, make them again")
    tensors = read_state_dict(path)
    if not {"latents", "labels"} <= set(tensors):
        raise UserError(f"{path} lacks latents or labels: delete it and run the same command again")
    return ArrayLatents(tensors["latents"], labels=tensors["labels"])
