"""latentlab: measure the latent spaces of image tokenizers and say how hard they are for a diffusion model.

The public names below are imported on first use, so that ``import latentlab`` and ``latentlab --help`` stay instant
(importing torch alone takes seconds).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from analyses.frechet import frechet_distance
    from analyses.viv import velocity_variance
    from latentlab.data import ImageSet, open_data
    from latentlab.errors import UserError
    from latentlab.latents import ArrayLatents, Latents, TokenizerSpec
    from latentlab.measurement import Estimate, Measurement, MetricCard
    from latentlab.registry import measure, measurements
    from latentlab.store import LatentStore
    from latentlab.tokenizers import Tokenizer, load_tokenizer

_HOME_OF = {
    "ArrayLatents": "latentlab.latents",
    "Estimate": "latentlab.measurement",
    "ImageSet": "latentlab.data",
    "LatentStore": "latentlab.store",
    "Latents": "latentlab.latents",
    "Measurement": "latentlab.measurement",
    "MetricCard": "latentlab.measurement",
    "Tokenizer": "latentlab.tokenizers",
    "TokenizerSpec": "latentlab.latents",
    "UserError": "latentlab.errors",
    "frechet_distance": "analyses.frechet",
    "load_tokenizer": "latentlab.tokenizers",
    "measure": "latentlab.registry",
    "measurements": "latentlab.registry",
    "open_data": "latentlab.data",
    "velocity_variance": "analyses.viv",
}

__all__ = [
    "ArrayLatents",
    "Estimate",
    "ImageSet",
    "LatentStore",
    "Latents",
    "Measurement",
    "MetricCard",
    "Tokenizer",
    "TokenizerSpec",
    "UserError",
    "__version__",
    "frechet_distance",
    "load_tokenizer",
    "measure",
    "measurements",
    "open_data",
    "velocity_variance",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'latentlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
