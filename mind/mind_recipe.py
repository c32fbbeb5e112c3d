"""MIND as the trainer sees it: tokens, noised embeddings, cross-entropy and squared error (arXiv 2606.00094, algorithm 1)."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from latentlab.encoding import weights_digest
from latentlab.ranks import Ranks
from mind import noise
from mind.learned_geometry import table_statistics
from mind.network import Mind
from mind.objective import MindObjective, SoftTopK
from mind.parameters import exported_weights
from mind.pipeline import MindGenerator
from mind.recipe import Batch, Recipe
from mind.released import save_mind
from mind.settings import SamplerSettings
from mind.state import whole_table
from mind.tokens import open_tokens
from mind.train_config import TrainConfig
from mind.training import Trainer, train

_HELD_OUT_BATCH = 128


class MindRecipe(Recipe):
    """A MIND run."""

    kind = "mind"

    def __init__(self, config: TrainConfig, device: torch.device, ranks: Ranks = Ranks()) -> None:
        """Open the tokens; what is not in the cache is encoded now, by all ``ranks``.

        Raises:
            UserError: data, tokenizer and model that do not fit each other, or sampler settings that do not exist.
        """
        self.config: TrainConfig = config
        self.device, self.model = device, config.mind
        self.sampler = config.preview.sampler
        self._settings = SamplerSettings(**self.sampler)
        self.source = open_tokens(config.data, self.model, device, config.validation_images, ranks)
        self.n, self.images = self.source.train.n, self.source.images
        self.fingerprints = self.source.fingerprints

    def network(self) -> Mind:
        """Return a fresh model."""
        return Mind(self.model)

    def objective(self, network: Mind) -> MindObjective:
        """Return cross-entropy and squared error."""
        loss = self.config.loss
        norm = (
            loss.soft_topk_norm if self.model.normalise else "none"
        )  # without spheres there is nothing to project onto
        soft = SoftTopK(loss.mse_weight, loss.soft_top_k, norm, self.model.subvector_size, loss.stop_gradient)
        return MindObjective(network, soft, loss.chunk)

    def batch(self, images: Tensor, places: Tensor, step: int) -> Batch:
        """Return ids [b,l], labels [b], times [b] and noise [b,l,d]."""
        seed = self.config.seed
        mirrored = noise.uniform(seed, "mirror", places, step, ()) < 0.5
        indices, labels = self.source.train.take(images, mirrored)
        dropped = noise.uniform(seed, "label", places, step, ()) < self.config.label_dropout
        labels = torch.where(dropped, self.model.null_class, labels)
        return self._noised(indices, labels, "train", places, step)

    def held_out(self) -> Iterator[tuple[int, Batch]]:
        """Yield batches of held-out tokens."""
        tokens = self.source.validation
        assert tokens is not None
        n = min(tokens.n, self.config.validation_images)
        chosen = torch.randperm(tokens.n, generator=torch.Generator().manual_seed(self.config.seed))[:n]
        for part in torch.arange(n).split(_HELD_OUT_BATCH):
            indices, labels = tokens.take(chosen[part], torch.zeros(len(part), dtype=torch.bool))
            yield len(part), self._noised(indices, labels, "validation", part, 0)

    def _noised(self, indices: Tensor, labels: Tensor, stream: str, places: Tensor, step: int) -> Batch:
        """Return what the objective takes, on the device, with fresh times and noise."""
        times, seed, places = self.config.times, self.config.seed, places.to(self.device)
        t = times.low + (times.high - times.low) * noise.uniform(seed, f"{stream}/time", places, step, ())
        eps = noise.normal(seed, f"{stream}/noise", places, step, (indices.shape[1], self.model.embed_dim))
        return indices.to(self.device), labels.to(self.device), t, eps

    def statistics(self, network: Mind) -> dict[str, float]:
        """Return norms and angles of the token table."""
        return table_statistics(whole_table(network))

    def generator(self, network: Mind) -> MindGenerator:
        """Return the model with its sampler and the tokenizer of its tokens."""
        return MindGenerator(network, self.source.tokenizer, self._settings, precision=network.precision)

    def export(self, path: Path, network: Mind, header: Mapping[str, str]) -> None:
        """Write a file that `load_mind` reads."""
        spec = self.source.tokenizer.spec
        digest = weights_digest(self.source.tokenizer)
        tokenizer = {"name": spec.name, "release": spec.release, "weights_sha256": digest}
        dtype = getattr(torch, self.config.export_dtype)
        state = exported_weights(network, dtype)
        save_mind(path, state, network.config, {"tokenizer": json.dumps(tokenizer), **header})


class MindTrainer(Trainer):
    """A run of MIND on one rank, or its continuation, ready to take steps."""

    def __init__(self, config: TrainConfig, out: Path, device: torch.device, ranks: Ranks = Ranks()) -> None:
        """Build everything and load the newest checkpoint; see `Trainer`."""
        super().__init__(config, lambda: MindRecipe(config, device, ranks), out, device, ranks)


def train_mind(config: TrainConfig, out: Path, *, device: str = "auto") -> Path:
    """Train MIND, or continue the run in ``out``; return the path of its raw weights. See `mind.training.train`."""
    return train(config, partial(MindRecipe, config), out, device=device)
