"""A baseline with its sampler and the tokenizer of its latents: classes in, images out, as `mind.generate` wants it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latentlab.encoding import default_batch_size, parameters_digest, weights_digest
from latentlab.errors import UserError
from latentlab.runtime import whole_float32
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from mind.baselines.ddpm_sampler import DdpmSamplerSettings, sample_ddpm
from mind.baselines.flow_sampler import FlowSamplerSettings, sample_flow
from mind.baselines.latents import Affine
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_sampler import sample_masked
from mind.baselines.masked_settings import MaskedSamplerSettings
from mind.baselines.transformer import LatentTransformer
from mind.generate import Drawn

_CPU_TOKENS, _GPU_TOKENS = 1 << 11, 1 << 16
"""Tokens sampled at a time: of few tokens a CPU wants more images, or calling its kernels costs more than they do."""

Settings = FlowSamplerSettings | DdpmSamplerSettings | MaskedSamplerSettings


def sampler_settings(kind: str, fields: Mapping[str, Any]) -> Settings:
    """Return the sampler settings of a kind of generator.

    Raises:
        UserError: unknown setting or value.
    """
    known: dict[str, Callable[..., Settings]] = {"dit": DdpmSamplerSettings, "emigm": MaskedSamplerSettings}
    return known.get(kind, FlowSamplerSettings)(**fields)


class BaselineGenerator:
    """A baseline that makes images.

    Attributes:
        network: the model.
        kind: ``sit``, ``dit``, ``lightningdit`` or ``emigm``.
        tokenizer: decodes its latents.
        settings: of the sampler.
        affine: normalisation of the latents; None where codes were learned.
    """

    def __init__(
        self,
        network: LatentTransformer | MaskedTransformer,
        kind: str,
        tokenizer: Tokenizer,
        affine: Affine | None,
        settings: Settings,
        *,
        precision: Any = "float32",
        weights_sha256: str | None = None,
    ) -> None:
        """Put the parts together on the device of the network.

        Args:
            network: put into evaluation mode and ``precision``.
            kind: of generator.
            tokenizer: moved to the network's device.
            affine: normalisation of the latents; None where codes were learned.
            settings: of the sampler.
            precision: a name of the network's ``set_precision``.
            weights_sha256: names the weights; None names them after the parameters themselves.

        Raises:
            UserError: codes were learned and the tokenizer has none, or another number.
        """
        if affine is None:
            codes = len(tokenizer.codebook) if isinstance(tokenizer, DiscreteTokenizer) else 0
            if codes != network.config.vocab_size:  # type: ignore[union-attr]
                raise UserError(
                    f"tokenizer '{tokenizer.spec.name}' ({tokenizer.spec.release}) has {codes} codes, the model another number: "
                    "give the tokenizer it was trained on"
                )
        self.network, self.kind, self.settings = network.eval(), kind, settings
        self.network.set_precision(precision)
        self.tokenizer = tokenizer.to(network.device).eval()
        self.affine, self._weights = affine, weights_sha256

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.network.config.num_classes

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self.network.device)

    @property
    def batch_size(self) -> int:
        """Images at a time that suit the device."""
        tokens = _CPU_TOKENS if self.network.device.type == "cpu" else _GPU_TOKENS
        return max(1, tokens // self.network.config.length)

    @property
    def batch_dependent(self) -> bool:
        """Whether an image depends on the others of its batch: never."""
        return False

    def facts(self) -> Mapping[str, Any]:
        """Return what determines the images of a sample number, as JSON values."""
        spec = self.tokenizer.spec
        return {
            "generator": self.kind,
            "weights_sha256": self._weights or parameters_digest(self.network),
            "tokenizer": {"name": spec.name, "release": spec.release, "weights_sha256": weights_digest(self.tokenizer)},
            "precision": self.network.precision,
            "sampler": self.settings.model_dump(mode="json"),
        }

    def draw(self, labels: Tensor, indices: Tensor, seed: int) -> Drawn:
        """Return images [b,3,H,W] in [-1,1] of classes ``labels`` [b] as the samples ``indices`` [b]."""
        with torch.inference_mode():
            latents, evaluations = self.sample(labels, indices, seed)
            return Drawn(self.decode(latents), evaluations)

    def sample(self, labels: Tensor, indices: Tensor, seed: int) -> tuple[Tensor, int]:
        """Return normalised latents [b,...] (or codes [b,l]) and how often the network read each."""
        sampler: Any = {"dit": sample_ddpm, "emigm": sample_masked}.get(self.kind, sample_flow)
        samples = sampler(self.network, labels, self.settings, seed=seed, indices=indices)
        return samples.latents, samples.evaluations

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images [b,3,H,W] in [-1,1] of normalised latents or of codes."""
        side = max(self.network.config.sides) * (self.tokenizer.spec.downsampling or 1)
        parts = latents.split(default_batch_size(side, self.network.device))
        with whole_float32():
            return torch.cat([self._decoded(part) for part in parts])

    def _decoded(self, latents: Tensor) -> Tensor:
        if self.affine is not None:
            return self.tokenizer.decode(self.affine.restore(latents.float())).float()
        assert isinstance(self.tokenizer, DiscreteTokenizer)
        return self.tokenizer.decode_indices(latents.view(len(latents), *self.network.config.sides)).float()
