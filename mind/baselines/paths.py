"""The paths of flows and of DDIM in the one frame of `mind.paths`: thin wrappers around the samplers.

Shapes: b batch, then c channels and an h w grid, or l tokens and c channels.
"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.latents import Latents, tokenizer_layout
from latentlab.store import LatentStore
from latentlab.tokenizers.base import Tokenizer
from mind.baselines.ddpm import respaced
from mind.baselines.ddpm_sampler import DdpmSamplerSettings, sample_ddpm
from mind.baselines.flow_sampler import FlowSamplerSettings, flow_times, sample_flow
from mind.baselines.guidance import GuidanceSettings, LatentModel
from mind.baselines.latent_samples import LatentSamples, checked_batch
from mind.baselines.latents import Affine
from mind.paths import OnState
from mind.token_latents import check_made_by

_CPU_NUMBERS, _GPU_NUMBERS = 1 << 15, 1 << 20
"""Numbers of latents sampled at a time."""

FLOW_ODE: dict[str, Any] = {"solver": "euler", "steps": 50, "time_shift": 1.0, "cfg_scale": 1.0}
DDPM_ODE: dict[str, Any] = {"solver": "ddim", "steps": 50, "eta": 0.0, "cfg_scale": 1.0}
"""Sampler settings that solve the ODE in 50 steps without guidance, as in arXiv 2606.03578, figure 10."""


class LatentPaths:
    """The paths of a model of continuous latents, a `PathGenerator`; made as `FlowPaths` or `DdpmPaths`.

    Attributes:
        times: flow times of the states.
    """

    def __init__(
        self,
        model: LatentModel,
        settings: GuidanceSettings,
        sampler: Callable[..., LatentSamples],
        factors: Tensor,
        affine: Affine | None,
        tokenizer: Tokenizer | None,
        facts: Mapping[str, Any] | None,
    ) -> None:
        """Put the parts together.

        Args:
            model: what ``sampler`` takes.
            settings: of the sampler.
            sampler: `sample_flow` or `sample_ddpm`.
            factors: of data and of noise in the states, float64 [2,M+1].
            affine: normalisation of the latents that the model was trained on; None for latents as they are in the store.
            tokenizer: what made them; None where that is not known, and any store of their shape will do.
            facts: what determines the model, as JSON values.
        """
        self._model, self._settings, self._sampler = model, settings, sampler
        self._affine, self._tokenizer, self._facts = affine, tokenizer, dict(facts or {})
        signal, noise = factors
        self._shrink: list[float] = (1 / (signal + noise)).tolist()
        self.times: list[float] = (signal / (signal + noise)).tolist()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._model.config.num_classes

    @property
    def batch_size(self) -> int:
        """Paths at a time that suit the device."""
        most = _CPU_NUMBERS if self._model.device.type == "cpu" else _GPU_NUMBERS
        return max(1, most // math.prod(self._model.config.latent_shape))

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._model.device)

    def facts(self) -> Mapping[str, Any]:
        """Return what determines the paths, as JSON values."""
        return {**self._facts, "sampler": self._settings.model_dump(mode="json")}

    def walk(self, labels: Tensor, indices: Tensor, seed: int, on_state: OnState) -> None:
        """See `PathGenerator`."""
        start = checked_batch(self._model, labels, None, seed, 0, indices).start
        on_state(start * self._shrink[0])

        def give(step: int, state: Tensor, estimate: Tensor) -> None:
            on_state(state * self._shrink[step + 1])

        self._sampler(self._model, labels, self._settings, noise=start, seed=seed, indices=indices, on_step=give)

    def latents(self, store: LatentStore) -> Latents:
        """See `PathGenerator`: normalised as in training."""
        if self._tokenizer is not None:
            check_made_by(store, self._tokenizer)
        return NormalisedLatents(store, self._model.config.latent_shape, self._affine)


class FlowPaths(LatentPaths):
    """The paths of a velocity model: its states are in the frame already, at times from 0 to 1."""

    def __init__(
        self,
        model: LatentModel,
        settings: FlowSamplerSettings | None = None,
        *,
        affine: Affine | None = None,
        tokenizer: Tokenizer | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the parts together, as `LatentPaths`; default: 50 Euler steps without guidance.

        Raises:
            UserError: the settings add noise on the way.
        """
        settings = settings or FlowSamplerSettings(**FLOW_ODE)
        if settings.solver == "sde":
            raise UserError(
                "straightness is of paths without random numbers, and solver=sde draws some on the way. Set solver=euler or "
                "solver=heun"
            )
        times = torch.tensor(flow_times(settings), dtype=torch.float64)
        super().__init__(model, settings, sample_flow, torch.stack([times, 1 - times]), affine, tokenizer, facts)


class DdpmPaths(LatentPaths):
    """The paths of DDIM with a noise model, from the time of the last step of noise, about 0.006, to 1."""

    def __init__(
        self,
        model: LatentModel,
        settings: DdpmSamplerSettings | None = None,
        *,
        affine: Affine | None = None,
        tokenizer: Tokenizer | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the parts together, as `LatentPaths`; default: 50 steps of DDIM without guidance.

        Raises:
            UserError: the settings add noise on the way.
        """
        settings = settings or DdpmSamplerSettings(**DDPM_ODE)
        if settings.solver != "ddim" or settings.eta:
            raise UserError(
                "straightness is of paths without random numbers, and these sampler settings draw some on the way: "
                f"solver={settings.solver}, eta={settings.eta:g}. Set solver=ddim, eta=0"
            )
        shares = torch.cat([respaced(settings.steps).abar.flip(0), torch.ones(1, dtype=torch.float64)])
        factors = torch.stack([shares, 1 - shares]).sqrt()
        super().__init__(model, settings, sample_ddpm, factors, affine, tokenizer, facts)


class NormalisedLatents(Latents):
    """The latents of a store, normalised as they are read."""

    def __init__(self, store: LatentStore, latent_shape: tuple[int, ...], affine: Affine | None) -> None:
        """Check that the store holds what a model learns.

        Args:
            store: the latents.
            latent_shape: what the model makes, (c,h,w) or (l,c).
            affine: normalisation; None for none.

        Raises:
            UserError: latents of another shape.
        """
        shape = latent_shape if len(latent_shape) == 3 else latent_shape[::-1]
        if store.shape != shape:
            held, made = ("x".join(map(str, one)) for one in (store.shape, shape))
            raise UserError(
                f"{store.path} holds latents of {held}, the model makes {made}: encode with the model's tokenizer"
            )
        self._store, self._affine = store, affine
        self.n, self.shape = store.n, store.shape
        self.labels, self.class_names, self.spec = store.labels, store.class_names, store.spec

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of the store's own and the normalisation."""
        numbers = None if self._affine is None else [self._affine.shift, self._affine.scale]
        return digest([self._store.fingerprint, numbers])

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the latents at ``indices``, [b,c,h,w] or [b,c,l]."""
        chosen = self._store.take(indices)
        if self._affine is None:
            return chosen
        return tokenizer_layout(self._affine.normalise(tokenizer_layout(chosen))).contiguous()
