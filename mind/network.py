"""MIND: a transformer that reads noisy token embeddings on the hypersphere and answers with logits over the vocabulary.

MIND, arXiv 2606.00094, section 3.2. Shapes: b batch, l tokens, d embedding width, h hidden, c condition width, v vocabulary.
Time: t=1 is data, t=0 is noise.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.errors import UserError
from mind.config import MindConfig
from mind.geometry import Norm, TokenTable, soft_topk
from mind.layers import Block, FourierMapper, Head, ResidualMapper, RotaryPositions, TimeEmbedding
from mind.process import Process
from mind.recompute import Recompute, run_block

Precision = Literal["float32", "autocast", "released_bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "autocast", "released_bf16")


class Mind(nn.Module):
    """The denoiser. The trunk gives hidden states and the condition; the head, called apart, gives logits.

    Attributes:
        config: the shape.
        process: forward process of the states it reads.
        table: token embeddings on the product of spheres, trained with the rest.
        recompute: what of the blocks' activations is computed again in the backward pass; see `mind.recompute`.
        metadata: header entries of the file the weights came from.
    """

    def __init__(self, config: MindConfig) -> None:
        """Build with fresh weights; blocks start as the identity and the residual branch at zero."""
        super().__init__()
        self.config = config
        self.process = Process(config.noise_process, config.noise_factor, config.signal_factor)
        self.recompute: Recompute = "nothing"
        self.metadata: dict[str, str] = {}
        self._precision: Precision = "float32"
        # Unused by any computation; the released checkpoints hold it and the published parameter count includes it.
        self.scalar = nn.Parameter(torch.ones(1, 1), requires_grad=False)
        self.table = TokenTable(
            config.vocab_size, config.embed_dim, config.subvector_size, config.normalise, config.embedding_init
        )
        self.fourier = FourierMapper(config)
        # Drawn in any case, so that models of one seed with and without it start alike in all else.
        branch = ResidualMapper(config)
        self.residual = branch if config.use_residual else None
        self.time = TimeEmbedding(config.cond_dim)
        self.classes = nn.Embedding(config.num_classes + 1, config.cond_dim)
        nn.init.normal_(self.classes.weight, std=0.02)
        self.rotary = RotaryPositions(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.head = Head(config)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states [b,l,h] after the last block and the condition [b,c].

        Args:
            x: states x_t, [b,l,d].
            t: times [b], 1 is data.
            labels: class ids [b]; `MindConfig.null_class` for none.
        """
        cond = self.condition(t, labels)
        return self.run_blocks(self.read(x), cond), cond

    def read(self, x: Tensor) -> Tensor:
        """Return the input [b,l,h] of the first block: both branches of the state ``x`` [b,l,d]."""
        x = x.to(self.fourier.frequencies.weight.dtype)
        mapped: Tensor = run_block(self.fourier, self.recompute, x)
        return mapped if self.residual is None else mapped + run_block(self.residual, self.recompute, x)

    def condition(self, t: Tensor, labels: Tensor) -> Tensor:
        """Return the condition [b,c]: SiLU on the part of the time only, plus that of the class."""
        embedded: Tensor = functional.silu(self.time(t)) + self.classes(labels)
        return embedded

    def run_blocks(self, hidden: Tensor, cond: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return ``hidden`` [b,l,h] after blocks first .. last-1 (default: all)."""
        cosine, sine = self.rotary(hidden.shape[1])
        with self._autocast(hidden.device.type):
            for block in self.blocks[first:last]:
                hidden = run_block(block, self.recompute, hidden, cond, cosine, sine)
        return hidden

    def output(self, hidden: Tensor, cond: Tensor) -> Tensor:
        """Return logits [b,l,v] of hidden states [b,l,h] and the condition [b,c]."""
        with self._autocast(hidden.device.type):
            logits: Tensor = self.head(hidden, cond)
        return logits

    def logits(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return logits [b,l,v] of states [b,l,d] at times [b] (1 is data) for classes [b].

        Raises:
            UserError: a class that the model does not have.
        """
        _check_range("class ids", labels, self.config.num_classes + 1)
        return self.output(*self(x, t, labels))

    def embed(self, indices: Tensor) -> Tensor:
        """Return the embeddings [...,d] of token ids [...], on the product of spheres.

        Raises:
            UserError: ids outside the vocabulary.
        """
        _check_range("token ids", indices, self.config.vocab_size)
        embedded: Tensor = self.table(indices)
        return embedded

    def soft_topk(self, logits: Tensor, k: int, norm: Norm = "full_unit") -> Tensor:
        """Return the soft top-k estimate [...,d] of the embedding from logits [...,v] (eq. 2 and 3)."""
        return soft_topk(logits, self.table.vectors(), k, norm, self.config.subvector_size)

    @property
    def precision(self) -> Precision:
        """How it computes; see `set_precision`."""
        return self._precision

    def set_precision(self, precision: str) -> "Mind":
        """Choose how it computes, and return the model.

        ``float32``; ``autocast``: matrix products of blocks and head in bfloat16, all else in float32; ``released_bf16``: as
        the released run, weights and states in bfloat16, blocks under autocast.

        Raises:
            UserError: unknown name.
        """
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision '{precision}'. Available: {', '.join(PRECISIONS)}")
        self._precision = precision
        frequencies = self.rotary.inv_freq
        self.to(torch.bfloat16 if precision == "released_bf16" else torch.float32)
        self.rotary.inv_freq = frequencies  # not rounded: the precision of the angles is `MindConfig.rope_dtype`
        return self

    def _autocast(self, device: str) -> AbstractContextManager[None]:
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(device, torch.bfloat16)


def _check_range(what: str, values: Tensor, end: int) -> None:
    """Raise `UserError` unless all ``values`` lie in 0 .. end-1; only on a CPU, a GPU would have to wait for the answer."""
    if values.device.type == "cpu" and values.numel() and not 0 <= int(values.min()) <= int(values.max()) < end:
        raise UserError(f"{what} must lie in 0 .. {end - 1}, got {int(values.min())} .. {int(values.max())}")
