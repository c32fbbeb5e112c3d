"""The transformer of DiT, SiT and LightningDiT: noisy latents, time and class in, velocity or noise out.

DiT (arXiv 2212.09748), SiT (arXiv 2401.08740), LightningDiT (arXiv 2501.01423); `TransformerConfig` says which parts each has.
Shapes: b batch, c channels, h w grid, l tokens, width of the model called h where there is no grid.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.errors import UserError
from mind.baselines.positions import rotary_tables, sinusoidal_positions
from mind.baselines.transformer_config import TransformerConfig
from mind.baselines.transformer_layers import Head, Rotary, TransformerBlock, patchify, unpatchify
from mind.layers import TimeEmbedding
from mind.recompute import Recompute, run_block

Precision = Literal["float32", "autocast", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "autocast", "bfloat16")


class LatentTransformer(nn.Module):
    """A transformer on continuous latents.

    Attributes:
        config: the shape.
        recompute: what of the blocks' activations is computed again in the backward pass; see `mind.recompute`.
        metadata: header entries of the file the weights came from.
    """

    positions: Tensor | None

    def __init__(self, config: TransformerConfig) -> None:
        """Build with fresh weights; blocks start as the identity and the output at zero."""
        super().__init__()
        self.config = config
        self.recompute: Recompute = "nothing"
        self.metadata: dict[str, str] = {}
        self._precision: Precision = "float32"
        self.patch = nn.Linear(config.in_channels * config.patch ** len(config.sides), config.width)
        self.time = TimeEmbedding(config.width)
        self.classes = nn.Embedding(config.num_classes + 1, config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.head = Head(config)
        added = None if config.position == "rope" else sinusoidal_positions(config.patches, config.width)
        self.register_buffer("positions", added)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as DiT does: Xavier, but small normal ones for time and class; what starts at zero stays so."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) and not name.endswith(("modulation", "head.linear")):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for name, weight in self.named_parameters():
            if name in ("classes.weight", "time.mlp.0.weight", "time.mlp.2.weight"):
                nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return what the network predicts of every latent, with `TransformerConfig.out_channels` channels, like ``x``.

        Args:
            x: states x_t, [b,c,h,w] or [b,l,c].
            t: times [b] as the kind counts them: flow time (0 noise, 1 data), or DDPM's step 0 .. 999 (999 is nearly noise).
            labels: class ids [b]; `TransformerConfig.null_class` for none.
        """
        config, dtype = self.config, self.patch.weight.dtype
        hidden = self.patch(patchify(x.to(dtype), config.patch))
        if self.positions is not None:
            hidden = hidden + self.positions.to(dtype)
        cond = functional.silu(self.time(t) + self.classes(labels)).to(dtype)
        with self._autocast(x.device.type):
            patches = self.head(self._run_blocks(hidden, cond), cond)
        return unpatchify(patches, config.patch, config.sides).to(x.dtype)

    def _run_blocks(self, hidden: Tensor, cond: Tensor) -> Tensor:
        config, rotary = self.config, None
        if config.position != "sinusoidal":
            rotary = Rotary(*rotary_tables(config.patches, config.head_dim, hidden.device))
        for block in self.blocks:
            hidden = run_block(block, self.recompute, hidden, cond, rotary)
        return hidden

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.patch.weight.device

    @property
    def precision(self) -> Precision:
        """How it computes; see `set_precision`."""
        return self._precision

    def set_precision(self, precision: Precision) -> "LatentTransformer":
        """Choose how it computes, and return the model.

        ``float32``; ``autocast``: matrix products of blocks and head in bfloat16, all else in float32; ``bfloat16``: all in
        bfloat16 but the embedding of time, for sampling.

        Raises:
            UserError: unknown name.
        """
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision '{precision}'. Available: {', '.join(PRECISIONS)}")
        self._precision, positions = precision, self.positions
        self.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self.time.float()  # neighbouring times would become one
        self.positions = positions  # computed, not learned: no reason to keep it rounded
        return self

    def _autocast(self, device: str) -> AbstractContextManager[None]:
        return torch.autocast(device, torch.bfloat16) if self._precision == "autocast" else nullcontext()
