"""Latent stores: read with `LatentStore`, written with `StoreWriter`; `latentlab.store_layout` says what lies where."""

from latentlab.store_writer import StoreWriter
from latentlab.stored_latents import LatentStore, open_if_current

__all__ = ["LatentStore", "StoreWriter", "open_if_current"]
