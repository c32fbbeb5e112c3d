"""The images of a latent store as MIND sees them: the model's embeddings of their tokens.

Shapes: b batch, l tokens, d embedding width.
"""

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latentlab.encoding import weights_digest
from latentlab.errors import UserError
from latentlab.files import digest
from latentlab.latents import Latents
from latentlab.store import LatentStore
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from mind.network import Mind


class TokenLatents(Latents):
    """Embeddings [d,l] of the tokens of every image, looked up as they are asked for."""

    def __init__(self, store: LatentStore, model: Mind, tokenizer: DiscreteTokenizer) -> None:
        """Look the codes of ``store`` up in the table of ``model``, which is copied.

        Raises:
            UserError: the store has no codes, or is of another tokenizer or another number of tokens than the model's.
        """
        _check(store, model, tokenizer)
        self._store = store
        self._vectors = model.table.vectors().detach().to("cpu", torch.float32, copy=True)
        self.n, self.shape = store.n, (model.config.embed_dim, model.config.tokens)
        self.labels, self.class_names, self.spec = store.labels, store.class_names, store.spec

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Digest of the store's own and of the table."""
        return digest([self._store.fingerprint, hashlib.sha256(self._vectors.numpy().tobytes()).hexdigest()])

    def take(self, indices: np.ndarray | slice) -> Tensor:
        """Return the embeddings at ``indices``, float32 [b,d,l].

        Raises:
            UserError: a token outside the model's vocabulary.
        """
        codes = self._store.codes(indices).flatten(1)
        vocabulary = len(self._vectors)
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < vocabulary:
            raise UserError(
                f"{self._store.path} has tokens {int(codes.min())} .. {int(codes.max())}, the model a vocabulary of "
                f"{vocabulary}: give the store of the tokenizer it was trained on"
            )
        return self._vectors[codes].transpose(1, 2).contiguous()


def _check(store: LatentStore, model: Mind, tokenizer: DiscreteTokenizer) -> None:
    if not store.has_codes:
        raise UserError(f"{store.path} has no tokens, and MIND makes nothing else: encode with '{tokenizer.spec.name}'")
    check_made_by(store, tokenizer)
    if store.cells != model.config.tokens:
        raise UserError(
            f"{store.path} has {store.cells} tokens per image, the model {model.config.tokens}: encode images of the size it "
            "was trained on"
        )


def check_made_by(store: LatentStore, tokenizer: Tokenizer) -> None:
    """Raise `UserError` when ``store`` says that another tokenizer, or other weights, made it."""
    spec, weights = tokenizer.spec, weights_digest(tokenizer)
    used = store.manifest.request.get("weights", weights) if store.manifest else weights
    if (store.spec is None or store.spec.name == spec.name) and used == weights:
        return
    made_by = "another tokenizer" if store.spec is None else f"'{store.spec.name}' ({store.spec.release})"
    raise UserError(
        f"{store.path} was made by {made_by}, and not by the tokenizer of the model with its weights: encode with "
        f"'{spec.name}' ({spec.release})"
    )
