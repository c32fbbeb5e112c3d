"""The masked transformer: visible tokens and a class in, what it says about every token out, with a head for codes or latents.

eMIGM (arXiv 2503.07197), and MaskGIT, MAR and MDM with the parts that `MaskedConfig` names. There is no time among its inputs:
the tokens themselves show how many are masked. Shapes: b batch, l tokens, d numbers of a continuous token, h width.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from mind.baselines.categorical_head import CategoricalHead
from mind.baselines.diffusion_head import DiffusionHead
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_layers import EPSILON, MaskedBlock, Packing
from mind.baselines.transformer_layers import patchify
from mind.recompute import Recompute, run_block

Precision = Literal["float32", "autocast"]
PRECISIONS: tuple[Precision, ...] = ("float32", "autocast")


class MaskedTransformer(nn.Module):
    """A masked generator.

    Attributes:
        config: the shape, and what it is trained on.
        head: `CategoricalHead` or `DiffusionHead`, called apart.
        recompute: what of the blocks' activations, and whether the logits of a head for codes, are computed again in the backward
            pass; see `mind.recompute`.
        metadata: header entries of the file the weights came from.
    """

    head: CategoricalHead | DiffusionHead

    def __init__(self, config: MaskedConfig) -> None:
        """Build with fresh weights: Xavier for linear layers, N(0, 0.02^2) for classes, mask token and positions."""
        super().__init__()
        self.config = config
        self.recompute: Recompute = "nothing"
        self.metadata: dict[str, str] = {}
        self._precision: Precision = "float32"
        h, places = config.width, config.class_tokens + config.length
        if config.vocab_size is None:
            self.input: nn.Module = nn.Linear(config.token_width, h)
        else:
            self.input = nn.Embedding(config.vocab_size, h)
        self.input_norm = nn.LayerNorm(h, EPSILON)
        self.classes = nn.Embedding(config.num_classes, h)
        self.mask_token = nn.Parameter(torch.empty(h))
        self.null_token = nn.Parameter(torch.empty(h)) if config.null_token == "own" else None
        self.positions = nn.Parameter(torch.empty(places, h))
        self.blocks = nn.ModuleList(MaskedBlock(config) for _ in range(config.depth))
        if config.mae:
            self.encoder_norm = nn.LayerNorm(h, EPSILON)
            self.bridge = nn.Linear(h, h)
            self.decoder_positions = nn.Parameter(torch.empty(places, h))
        self.output_norm = nn.LayerNorm(h, EPSILON)
        self.output_positions = nn.Parameter(torch.empty(config.length, h))
        self._initialise()
        self.head = DiffusionHead(config) if config.vocab_size is None else CategoricalHead(config)

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        for parameter in self.parameters(recurse=False):  # tokens and positions
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        """Return hidden states [b,l,h] for the head; those of visible tokens mean nothing.

        Args:
            tokens: codes [b,l] or continuous tokens [b,l,d]; what stands at masked places has no effect.
            masked: which are masked, bool [b,l].
            labels: class ids [b]; `MaskedConfig.null_class` for none.
        """
        with self.autocast():
            x = self._read(tokens, masked, labels)
            x = self._masked_autoencoder(x, masked) if self.config.mae else self._run(self.blocks, x)
            hidden: Tensor = self.output_norm(x[:, self.config.class_tokens :]) + self.output_positions
        return hidden

    def _read(self, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        """Return class tokens and tokens with their positions, normalised, [b,class tokens + l,h]."""
        x = self.input(tokens)
        if not self.config.mae:
            x = torch.where(masked[..., None], self.mask_token.to(x.dtype), x)
        classes = self._class_token(labels)[:, None].expand(-1, self.config.class_tokens, -1)
        read: Tensor = self.input_norm(torch.cat([classes.to(x.dtype), x], dim=1) + self.positions)
        return read

    def _class_token(self, labels: Tensor) -> Tensor:
        """Return what stands for each class, [b,h]."""
        nothing = labels == self.config.null_class
        null = self.mask_token if self.null_token is None else self.null_token
        return torch.where(nothing[:, None], null, self.classes(labels.masked_fill(nothing, 0)))

    def _masked_autoencoder(self, x: Tensor, masked: Tensor) -> Tensor:
        """Encode classes and visible tokens, put mask tokens where tokens are masked, and decode all."""
        whole = nn.functional.pad(masked, (self.config.class_tokens, 0))
        packing, encoders = Packing.of(whole), self.config.encoder_depth
        packed = self._run(self.blocks[:encoders], packing.pack(x), packing.real)
        packed = self.bridge(self.encoder_norm(packed))
        x = packing.unpack(packed, self.mask_token, whole) + self.decoder_positions
        return self._run(self.blocks[encoders:], x)

    def _run(self, blocks: Iterable[nn.Module], x: Tensor, attended: Tensor | None = None) -> Tensor:
        recompute = self.recompute
        if recompute == "cheap" and self.config.dropout:
            recompute = "blocks"  # attention that is kept would not draw its numbers again, and what follows others
        for block in blocks:
            x = run_block(block, recompute, x, attended)
        return x

    def to_tokens(self, latents: Tensor) -> Tensor:
        """Return latents [b,c,h,w] or [b,m,c] as tokens [b,l,d], and codes [b,h,w] or [b,l] as [b,l].

        Raises:
            UserError: their shape is not the model's.
        """
        config = self.config
        codes = config.vocab_size is not None
        if latents.shape[1:] != config.latent_shape and not (codes and latents.shape[1:] == (config.length,)):
            raise UserError(
                f"the model is of latents of shape {list(config.latent_shape)}, got {list(latents.shape[1:])}"
            )
        return latents.flatten(1) if codes else patchify(latents, config.patch)

    def to_latents(self, tokens: Tensor) -> Tensor:
        """Invert `to_tokens`; codes stay [b,l]."""
        config, p = self.config, self.config.patch
        if config.vocab_size is not None:
            return tokens
        if config.input is None:
            return tokens.reshape(len(tokens), *config.sides, config.in_channels)
        h, w = config.patches
        cut = tokens.reshape(len(tokens), h, w, config.in_channels, p, p)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), config.in_channels, *config.sides)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.mask_token.device

    @property
    def precision(self) -> Precision:
        """How it computes; see `set_precision`."""
        return self._precision

    def set_precision(self, precision: Precision) -> "MaskedTransformer":
        """Choose how it computes, and return the model: ``float32``, or ``autocast`` with matrix products in bfloat16.

        Raises:
            UserError: unknown name.
        """
        if precision not in PRECISIONS:
            raise UserError(f"unknown precision '{precision}'. Available: {', '.join(PRECISIONS)}")
        self._precision = precision
        return self

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the head computes, too."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "autocast" else nullcontext()
