"""From a grid of features to a sequence and back: the transformers of GigaTok (Xiong et al. 2025, arXiv 2504.08736).

Both ask the other side with queries, as the decoder of DETR does (Carion et al. 2020, arXiv 2005.12872, appendix A.4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.gigatok_architecture import GigaTokArchitecture
from latentlab.tokenizers.sequence_architecture import TransformerSize


class QueryLayer(nn.Module):
    """Queries look at each other, then at the memory, then an MLP; each step after a LayerNorm and plus its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = (nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, positions: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        """Return the queries [n,q,w] after the layer.

        Args:
            queries: [n,q,w].
            positions: added to queries where they are compared, [1,q,w].
            memory: what is asked, [n,m,w].
            keys: the memory with its positions, [n,m,w].
        """
        normed = self.norm1(queries)
        placed = normed + positions
        queries = queries + self.self_attn(placed, placed, normed, need_weights=False)[0]
        placed = self.norm2(queries) + positions
        queries = queries + self.multihead_attn(placed, keys, memory, need_weights=False)[0]
        return queries + self.linear2(F.gelu(self.linear1(self.norm3(queries))))


class Resampler(nn.Module):
    """Layers, and the learned positions of a grid and of a sequence."""

    def __init__(self, config: GigaTokArchitecture, size: TransformerSize) -> None:
        super().__init__()
        self.grid = config.grid
        self.ln_pre, self.ln_post = nn.LayerNorm(config.z_channels), nn.LayerNorm(size.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.grid**2, 1, size.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, 1, size.width))
        self.transformer = nn.ModuleList(QueryLayer(size.width, size.heads) for _ in range(size.depth))

    def ask(self, queries: Tensor, query_positions: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """Return the queries [n,q,w] after all layers, with channels first: [n,w,q]. Positions are [q,1,w] and [m,1,w]."""
        positions, keys = query_positions.transpose(0, 1), memory + memory_positions.transpose(0, 1)
        for layer in self.transformer:
            queries = layer(queries, positions, memory, keys)
        return self.ln_post(queries).transpose(1, 2)


class GridToSequence(Resampler):
    """A grid [n,z,h,w] -> a sequence of as many channels, [n,z,1,l]."""

    def __init__(self, config: GigaTokArchitecture) -> None:
        size = config.encoder_transformer
        super().__init__(config, size)
        self.tokens = config.num_latent_tokens
        self.encoder_embed, self.global_proj = (
            nn.Linear(config.z_channels, size.width),
            nn.Linear(size.width, size.width),
        )
        self.conv_out = nn.Conv2d(size.width, config.z_channels, kernel_size=1)

    def forward(self, grid: Tensor) -> Tensor:
        """Return the sequence."""
        memory = self.encoder_embed(self.ln_pre(grid.flatten(2).transpose(1, 2)))
        queries = self.global_proj(pyramid(memory.transpose(1, 2).unflatten(2, grid.shape[2:]), self.tokens))
        out = self.ask(queries, self.latent_token_positional_embedding, memory, self.positional_embedding)
        return self.conv_out(out.unsqueeze(2))


class SequenceToGrid(Resampler):
    """A sequence [n,z,1,l] -> a grid of as many channels, [n,z,h,w]."""

    def __init__(self, config: GigaTokArchitecture) -> None:
        size = config.decoder_transformer
        super().__init__(config, size)
        self.decoder_embed = nn.Linear(config.z_channels, size.width)
        self.conv_out = nn.Conv2d(size.width, config.z_channels, kernel_size=3, padding=1)

    def forward(self, sequence: Tensor) -> Tensor:
        """Return the grid. Every cell starts from the first token, which stands for the whole image."""
        memory = self.decoder_embed(self.ln_pre(sequence.squeeze(2).transpose(1, 2)))
        queries = memory[:, :1].expand(-1, self.grid**2, -1)
        out = self.ask(queries, self.positional_embedding, memory, self.latent_token_positional_embedding)
        return self.conv_out(out.unflatten(2, (self.grid, self.grid)))


def pyramid(grid: Tensor, tokens: int) -> Tensor:
    """Return averages of [n,c,h,w] over ever smaller blocks, coarse to fine: [n,tokens,c].

    1 + 1 + 2 + 4 + ... + tokens/2 blocks: the whole grid twice, then halves side by side, then quarters, ...; the blocks of one
    level in rows.
    """
    height, width = grid.shape[2:]
    levels = [0, *range(tokens.bit_length() - 1)]
    blocks = [(1 << level // 2, 1 << (level + 1) // 2) for level in levels]  # rows, columns
    pooled = [F.avg_pool2d(grid, (height // rows, width // columns)).flatten(2) for rows, columns in blocks]
    return torch.cat(pooled, dim=2).transpose(1, 2)
