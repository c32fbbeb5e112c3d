"""Tokenizers: the interface, those that can be loaded by name, and the architectures they are built from.

The public names are imported on first use: listing what there is must not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlab.tokenizers.autoencoder import Autoencoder, build_tokenizer
    from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
    from latentlab.tokenizers.load import load_tokenizer
    from latentlab.tokenizers.zoo import ZooEntry, default_release, tokenizer_names, zoo_entries

_HOME_OF = {
    "Autoencoder": "autoencoder",
    "DiscreteTokenizer": "base",
    "Tokenizer": "base",
    "TrainOutput": "trainable",
    "ZooEntry": "zoo",
    "build_tokenizer": "autoencoder",
    "default_release": "zoo",
    "load_tokenizer": "load",
    "tokenizer_names": "zoo",
    "zoo_entries": "zoo",
}

__all__ = [
    "Autoencoder",
    "DiscreteTokenizer",
    "Tokenizer",
    "TrainOutput",
    "ZooEntry",
    "build_tokenizer",
    "default_release",
    "load_tokenizer",
    "tokenizer_names",
    "zoo_entries",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"latentlab.tokenizers.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'latentlab.tokenizers' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
