"""The layers of the masked transformer: plain blocks as in a vision transformer, and the packing of visible tokens.

eMIGM (arXiv 2503.07197) takes them from MAR (arXiv 2406.11838) and MAE (arXiv 2111.06377). Shapes: b batch, l tokens, h width,
k visible tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mind.baselines.masked_config import MaskedConfig

EPSILON = 1e-6
"""Of all normalisations."""


class MaskedBlock(nn.Module):
    """Attention and MLP, each behind a layer normalisation and added to its input (ViT, arXiv 2010.11929)."""

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        h = config.width
        self._heads, self._dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(h, EPSILON), nn.LayerNorm(h, EPSILON)
        self.qkv, self.out = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.wide, self.narrow = nn.Linear(h, 4 * h), nn.Linear(4 * h, h)

    def forward(self, x: Tensor, attended: Tensor | None = None) -> Tensor:
        """Return hidden states [b,l,h]; ``attended`` [b,l] says which tokens may be looked at, None for all."""
        x = x + self._dropped(self.out(self._attention(self.norm1(x), attended)))
        inner = self._dropped(functional.gelu(self.wide(self.norm2(x))))
        return x + self._dropped(self.narrow(inner))

    def _attention(self, x: Tensor, attended: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)  # [b,heads,l,m] each
        mixed = functional.scaled_dot_product_attention(
            q, k, v,
            attn_mask=None if attended is None else attended[:, None, None, :],
            dropout_p=self._dropout if self.training else 0.0,
        )  # fmt: skip
        return mixed.transpose(1, 2).flatten(2)

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self._dropout, self.training) if self._dropout else x


class Packing(NamedTuple):
    """Where the visible tokens of each image stand when they are moved to the front, the rest of a row being padding."""

    places: Tensor
    """Their places among all tokens, in order, int64 [b,k]; padding holds places of masked tokens."""
    real: Tensor
    """Which of the k are not padding, bool [b,k]."""

    @classmethod
    def of(cls, masked: Tensor) -> "Packing":
        """Pack the tokens that are not ``masked`` [b,l]; k is the largest number in the batch."""
        visible = (~masked).sum(1)
        k = int(visible.max())
        places = masked.byte().argsort(dim=1, stable=True)[:, :k]
        return cls(places, torch.arange(k, device=masked.device) < visible[:, None])

    def pack(self, x: Tensor) -> Tensor:
        """Return the visible rows of ``x``: [b,l,h] to [b,k,h]."""
        return x.gather(1, self._spread(x))

    def unpack(self, x: Tensor, filler: Tensor, masked: Tensor) -> Tensor:
        """Put rows [b,k,h] back to their places among [b,l,h], with ``filler`` [h] where ``masked`` [b,l]."""
        filler = filler.to(x.dtype)
        whole = filler.expand(*masked.shape, -1).scatter(1, self._spread(x), x)
        return torch.where(masked[..., None], filler, whole)

    def _spread(self, x: Tensor) -> Tensor:
        return self.places[..., None].expand(-1, -1, x.shape[-1])
