"""The baselines as the trainer sees them: latents of a store, noised or masked, and the loss of their kind."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentlab.encoding import weights_digest
from latentlab.errors import UserError
from latentlab.ranks import Ranks
from latentlab.store import LatentStore
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from mind import noise
from mind.baselines.ddpm_objective import DdpmObjective, drawn_steps
from mind.baselines.flow import FlowObjective, drawn_times
from mind.baselines.generators import BaselineGenerator, sampler_settings
from mind.baselines.latents import Affine, LatentSet, affine_of
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_objective import MaskedObjective, draw_noise
from mind.baselines.masked_settings import FAMILY_SAMPLERS
from mind.baselines.run_configs import DdpmRun, FlowRun, LatentRun, MaskedRun, masked_of, transformer_of
from mind.baselines.transformer import LatentTransformer
from mind.baselines.weight_files import save_baseline
from mind.recipe import Batch, Recipe
from mind.stores import chosen_tokenizer, latent_shape, open_stores
from mind.tokens import CodeLimits, TokenSet, token_set
from mind.weight_files import TokenizerRecord

_HELD_OUT_BATCH = 128


class _Data(NamedTuple):
    train: LatentSet | TokenSet
    validation: LatentSet | TokenSet | None
    affine: Affine | None


class BaselineRecipe(Recipe):
    """A run of SiT, LightningDiT, DiT or eMIGM."""

    def __init__(self, config: FlowRun | DdpmRun | MaskedRun, device: torch.device, ranks: Ranks = Ranks()) -> None:
        """Open the latents; what is not in the cache is encoded now, by all ``ranks``.

        Raises:
            UserError: data, tokenizer and model that do not fit each other, or sampler settings that do not exist.
        """
        self.config: FlowRun | DdpmRun | MaskedRun = config
        self.device, self.kind = device, config.kind
        family = FAMILY_SAMPLERS[config.family] if isinstance(config, MaskedRun) else {}
        self.sampler = {**family, **config.preview.sampler}
        self._settings = sampler_settings(config.kind, self.sampler)
        self.tokenizer = chosen_tokenizer(config.data, device)
        vocabulary = _vocabulary(self.tokenizer, config)
        shape = latent_shape(config.data, self.tokenizer, device)
        self._shape: Any = (
            masked_of(config, shape, vocabulary) if isinstance(config, MaskedRun) else transformer_of(config, shape)
        )
        if vocabulary is None and self._shape.latent_shape != shape:
            raise UserError(
                f"the latents are {shape}, the model's {self._shape.latent_shape}: leave its shape out of model"
            )
        stores = open_stores(config.data, self.tokenizer, device, "float32", config.validation_images, ranks)
        self.images, self.fingerprints = stores.images, stores.fingerprints
        self._data = self._read(stores.train, stores.validation)
        self.n = self._data.train.n

    def _read(self, train: list[LatentStore], held_out: LatentStore | None) -> _Data:
        if getattr(self._shape, "vocab_size", None) is not None:
            limits = CodeLimits(self._shape.vocab_size, self._shape.length, self._shape.num_classes)
            return _Data(token_set(train, limits), None if held_out is None else token_set([held_out], limits), None)
        affine = affine_of(train[0], self.tokenizer, self.config.normalisation)
        classes = self._shape.num_classes
        others = None if held_out is None else LatentSet([held_out], affine, classes)
        return _Data(LatentSet(train, affine, classes), others, affine)

    def network(self) -> Any:
        """Return a fresh network."""
        return MaskedTransformer(self._shape) if self.kind == "emigm" else LatentTransformer(self._shape)

    def objective(self, network: Any) -> nn.Module:
        """Return the loss of the kind."""
        if isinstance(self.config, MaskedRun):
            return MaskedObjective(network)
        if isinstance(self.config, DdpmRun):
            return DdpmObjective(network, self.config.loss)
        assert isinstance(self.config, FlowRun)
        return FlowObjective(network, self.config.loss)

    def batch(self, images: Tensor, places: Tensor, step: int) -> Batch:
        """Return latents, labels and what is random about the loss."""
        seed = self.config.seed
        mirrored = noise.uniform(seed, "mirror", places, step, ()) < 0.5
        latents, labels = self._data.train.take(images, mirrored)
        dropped = noise.uniform(seed, "label", places, step, ()) < self.config.label_dropout
        return self._with_noise(latents, torch.where(dropped, self._shape.null_class, labels), "train", places, step)

    def held_out(self) -> Iterator[tuple[int, Batch]]:
        """Yield batches of held-out latents."""
        data = self._data.validation
        assert data is not None
        n = min(data.n, self.config.validation_images)
        chosen = torch.randperm(data.n, generator=torch.Generator().manual_seed(self.config.seed))[:n]
        for part in torch.arange(n).split(_HELD_OUT_BATCH):
            latents, labels = data.take(chosen[part], torch.zeros(len(part), dtype=torch.bool))
            yield len(part), self._with_noise(latents, labels, "validation", part, 0)

    def _with_noise(self, latents: Tensor, labels: Tensor, stream: str, places: Tensor, step: int) -> Batch:
        seed, places = self.config.seed, places.to(self.device)
        latents, labels = latents.to(self.device), labels.to(self.device)
        if self.kind == "emigm":
            return latents, labels, draw_noise(self._shape, seed, stream, places, step)
        t = self._times(noise.uniform(seed, f"{stream}/time", places, step, ()))
        return latents, labels, t, noise.normal(seed, f"{stream}/noise", places, step, tuple(latents.shape[1:]))

    def _times(self, uniform: Tensor) -> Tensor:
        """Return times [b] as the kind counts them."""
        if isinstance(self.config, FlowRun):
            return drawn_times(uniform, self.config.loss)
        return drawn_steps(uniform)

    def generator(self, network: Any) -> BaselineGenerator:
        """Return the network with its sampler and tokenizer."""
        return BaselineGenerator(
            network, self.kind, self.tokenizer, self._data.affine, self._settings, precision=network.precision
        )

    def export(self, path: Path, network: Any, header: Mapping[str, str]) -> None:
        """Write a file that `load_baseline` reads."""
        spec = self.tokenizer.spec
        record = TokenizerRecord(name=spec.name, release=spec.release, weights_sha256=weights_digest(self.tokenizer))
        dtype = getattr(torch, self.config.export_dtype)
        save_baseline(path, network, self.kind, self._data.affine, record, dtype, header)


def _vocabulary(tokenizer: Tokenizer, config: LatentRun) -> int | None:
    """Return how many codes there are to learn, None where the latents themselves are learned."""
    if not (isinstance(config, MaskedRun) and config.codes):
        return None
    if not isinstance(tokenizer, DiscreteTokenizer):
        raise UserError(f"codes: tokenizer '{config.data.tokenizer}' is continuous and has none: leave codes out")
    return len(tokenizer.codebook)
