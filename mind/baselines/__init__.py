"""Generators that MIND is compared with, on the same latents: DiT, SiT, LightningDiT and masked models.

The public names below are imported on first use, so that ``import mind.baselines`` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mind.baselines.ddpm_objective import DdpmLoss, DdpmObjective
    from mind.baselines.ddpm_sampler import DdpmSamplerSettings, sample_ddpm
    from mind.baselines.flow import FlowLoss, FlowObjective, flow_loss
    from mind.baselines.flow_sampler import FlowSamplerSettings, sample_flow
    from mind.baselines.latent_samples import LatentSamples
    from mind.baselines.published import export_published, load_published
    from mind.baselines.transformer import LatentTransformer
    from mind.baselines.transformer_config import TransformerConfig, sized

_HOME_OF = {
    "DdpmLoss": "ddpm_objective",
    "DdpmObjective": "ddpm_objective",
    "DdpmSamplerSettings": "ddpm_sampler",
    "FlowLoss": "flow",
    "FlowObjective": "flow",
    "FlowSamplerSettings": "flow_sampler",
    "LatentSamples": "latent_samples",
    "LatentTransformer": "transformer",
    "TransformerConfig": "transformer_config",
    "export_published": "published",
    "flow_loss": "flow",
    "load_published": "published",
    "sample_ddpm": "ddpm_sampler",
    "sample_flow": "flow_sampler",
    "sized": "transformer_config",
}

__all__ = [
    "DdpmLoss",
    "DdpmObjective",
    "DdpmSamplerSettings",
    "FlowLoss",
    "FlowObjective",
    "FlowSamplerSettings",
    "LatentSamples",
    "LatentTransformer",
    "TransformerConfig",
    "export_published",
    "flow_loss",
    "load_published",
    "sample_ddpm",
    "sample_flow",
    "sized",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"mind.baselines.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'mind.baselines' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
