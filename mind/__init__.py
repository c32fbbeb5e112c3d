"""MIND: diffusion of image tokens on a product of spheres (arXiv 2606.00094): the model, its training and its sampler.

The public names below are imported on first use, so that ``import mind`` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mind.config import SIZES, MindConfig, sized
    from mind.geometry import TokenTable, soft_topk, unit_subvectors
    from mind.mind_recipe import train_mind
    from mind.network import Mind
    from mind.process import Process
    from mind.released import export_released, load_mind, load_released, save_mind
    from mind.sampler import Samples, sample
    from mind.schedules import timesteps
    from mind.settings import SamplerSettings
    from mind.weight_files import find_weights

_HOME_OF = {
    "SIZES": "config",
    "Mind": "network",
    "MindConfig": "config",
    "Process": "process",
    "SamplerSettings": "settings",
    "Samples": "sampler",
    "TokenTable": "geometry",
    "export_released": "released",
    "find_weights": "weight_files",
    "load_mind": "released",
    "load_released": "released",
    "sample": "sampler",
    "save_mind": "released",
    "sized": "config",
    "soft_topk": "geometry",
    "timesteps": "schedules",
    "train_mind": "mind_recipe",
    "unit_subvectors": "geometry",
}

__all__ = [
    "SIZES",
    "Mind",
    "MindConfig",
    "Process",
    "SamplerSettings",
    "Samples",
    "TokenTable",
    "export_released",
    "find_weights",
    "load_mind",
    "load_released",
    "sample",
    "save_mind",
    "sized",
    "soft_topk",
    "timesteps",
    "train_mind",
    "unit_subvectors",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"mind.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'mind' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
