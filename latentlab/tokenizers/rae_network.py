"""The two transformers of RAE: DINOv2 with registers (Darcet et al. 2024, arXiv 2309.16588), and MAE's decoder (2111.06377).

Parameter names are those of diffusers' ``AutoencoderRAE``, in whose layout the weights are published, with transformers' encoder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.hub_architecture import HEAD_WIDTH, RAEArchitecture

REGISTERS = 4
"""Tokens of the encoder that belong to no patch, beside the class token."""

TRAINED_SIZE = 518
"""Side in pixels of the images for which the encoder has positions; for others they are interpolated."""

_ENCODER_EPS, _DECODER_EPS = 1e-6, 1e-12


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return what attention with ``heads`` heads makes of queries, keys and values, [n,l,w] each."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


# --- encoder --------------------------------------------------------------------------------------------------------


class PatchEmbeddings(nn.Module):
    """One linear map of every patch."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patches row by row, [n,p,w], of [n,3,H,W]."""
        return self.projection(pixels).flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """Class token, registers and patches, those with positions."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.grid = TRAINED_SIZE // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # published; only training uses it
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, REGISTERS, width))
        self.patch_embeddings = PatchEmbeddings(patch, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return tokens [n,1+registers+p,w] of square [n,3,S,S]."""
        patches = self.patch_embeddings(pixels)
        first, others = self.position_embeddings.split([1, self.grid**2], dim=1)
        side = round(patches.shape[1] ** 0.5)
        if side != self.grid:
            others = self._interpolated(others, side)
        start = torch.cat([self.cls_token + first, self.register_tokens], dim=1).expand(len(pixels), -1, -1)
        return torch.cat([start, patches + others], dim=1)

    def _interpolated(self, positions: Tensor, side: int) -> Tensor:
        """Return positions [1,side^2,w] of [1,grid^2,w]: bicubic, with antialiasing, as DINOv2's authors do."""
        grid = positions.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        resized = F.interpolate(grid.float(), size=(side, side), mode="bicubic", antialias=True)
        return resized.flatten(2).transpose(1, 2).to(positions.dtype)


class EncoderAttention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return self.o_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), x.shape[-1] // HEAD_WIDTH))


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return x * self.lambda1


class EncoderLayer(nn.Module):
    """Attention and MLP, each after a LayerNorm and before a layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=_ENCODER_EPS) for _ in range(2))
        self.attention, self.mlp = EncoderAttention(width), Mlp(width)
        self.layer_scale1, self.layer_scale2 = LayerScale(width), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """Pixels [n,3,S,S], normalised -> patch tokens [n,p,w]. The last LayerNorm has no affine part: RAE drops it."""

    def __init__(self, config: RAEArchitecture) -> None:
        super().__init__()
        width = config.encoder_hidden_size
        self.embeddings = Embeddings(width, config.encoder_patch_size)
        layers = nn.ModuleList(EncoderLayer(width) for _ in range(config.encoder_num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the tokens of patches; those of class and registers are dropped."""
        tokens = self.embeddings(pixels)
        for layer in self.encoder.get_submodule("layer").children():
            tokens = layer(tokens)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=_ENCODER_EPS)[:, 1 + REGISTERS :]


# --- decoder --------------------------------------------------------------------------------------------------------


class DecoderAttention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return self.to_out(_attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


def _dense(width_in: int, width_out: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(width_in, width_out)})


class DecoderLayer(nn.Module):
    """Attention and MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(width, eps=_DECODER_EPS) for _ in range(2))
        self.attention = DecoderAttention(width, heads)
        self.intermediate, self.output = _dense(width, inner), _dense(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        x = x + self.attention(self.layernorm_before(x))
        inner = F.gelu(self.intermediate["dense"](self.layernorm_after(x)))
        out: Tensor = x + self.output["dense"](inner)
        return out


class Decoder(nn.Module):
    """Patch tokens [n,p,w] -> normalised pixels [n,3,S,S]."""

    def __init__(self, config: RAEArchitecture) -> None:
        super().__init__()
        width, patch = config.decoder_hidden_size, config.patch_size
        self.side, self.patch = config.latent_side, patch
        self.decoder_embed = nn.Linear(config.encoder_hidden_size, width)
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=_DECODER_EPS)
        self.decoder_pred = nn.Linear(width, 3 * patch**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the pixels; the class token has no position, and its output is dropped."""
        x = self.decoder_embed(tokens)
        x = x + grid_positions(x.shape[-1], self.side).to(x)
        x = torch.cat([self.trainable_cls_token.expand(len(x), -1, -1), x], dim=1)
        for layer in self.decoder_layers:
            x = layer(x)
        pixels = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        cells = pixels.unflatten(1, (self.side, self.side)).unflatten(-1, (self.patch, self.patch, 3))  # n h w p q c
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def grid_positions(width: int, side: int) -> Tensor:
    """Return sines and cosines of column (first half of the channels) and row of every cell, row by row: [side^2,width].

    Grids are stretched to 16 cells, so that the published ones have whole numbers (MAE, 2111.06377, appendix A.1).
    """
    place = torch.arange(side, dtype=torch.float64) * 16 / side
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = place[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side,width/2]
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1)
