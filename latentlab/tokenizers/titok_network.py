"""Encoder and decoder of TiTok (Yu et al. 2024, arXiv 2406.07550), with the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlab.tokenizers.sequence_architecture import TransformerSize
from latentlab.tokenizers.titok_architecture import TiTokArchitecture


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,l,w] of [n,l,w]."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A class token, image tokens and latent tokens, all with learned positions, through the blocks."""

    def __init__(self, size: TransformerSize, image_tokens: int, latent_tokens: int) -> None:
        super().__init__()
        self.image_tokens = image_tokens
        self.class_embedding = nn.Parameter(torch.zeros(1, size.width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + image_tokens, size.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(latent_tokens, size.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.transformer = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))

    def mix(self, image: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return image tokens [n,p,w] and latent tokens [n,l,w] after the blocks."""
        n = len(image)
        image = torch.cat([self.class_embedding.expand(n, 1, -1), image], dim=1) + self.positional_embedding
        x = self.ln_pre(torch.cat([image, latent + self.latent_token_positional_embedding], dim=1))
        for block in self.transformer:
            x = block(x)
        return x[:, 1 : 1 + self.image_tokens], x[:, 1 + self.image_tokens :]


class Encoder(Transformer):
    """Images [n,3,S,S] in [0,1] and latent tokens [l,w] -> tokens [n,l,c], or moments [n,l,2c]."""

    def __init__(self, config: TiTokArchitecture) -> None:
        size, patch = config.encoder_transformer, config.vit_enc_patch_size
        super().__init__(size, config.encoder_grid**2, config.num_latent_tokens)
        self.legacy = config.is_legacy
        self.patch_embed = nn.Conv2d(3, size.width, kernel_size=patch, stride=patch)
        twice = 2 if config.quantize_mode == "vae" else 1
        self.conv_out = nn.Conv2d(size.width, twice * config.token_size, kernel_size=1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        """Return what the latent tokens have gathered."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        _, latent = self.mix(patches, latent_tokens.expand(len(images), -1, -1))
        return self.conv_out(self._channels_first(self.ln_post(latent))).squeeze(3).transpose(1, 2)

    def _channels_first(self, latent: Tensor) -> Tensor:
        """Return [n,w,l,1] of [n,l,w].

        The legacy models read the numbers of [l,w] as if they were ordered [w,l], and were trained so.
        """
        n, tokens, width = latent.shape
        if self.legacy:
            return latent.reshape(n, width, tokens, 1)
        return latent.transpose(1, 2).unsqueeze(3)


class Decoder(Transformer):
    """Tokens [n,l,c] -> pixels [n,3,S,S] in about [0,1], or of a legacy model the scores of VQGAN codes [n,v,h,w]."""

    def __init__(self, config: TiTokArchitecture) -> None:
        size, patch = config.decoder_transformer, config.vit_dec_patch_size
        super().__init__(size, config.decoder_grid**2, config.num_latent_tokens)
        self.grid, self.patch = config.decoder_grid, patch
        self.decoder_embed = nn.Linear(config.token_size, size.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.width))
        if config.is_legacy:
            self.ffn = nn.Sequential(
                nn.Conv2d(size.width, 2 * size.width, kernel_size=1),
                nn.Tanh(),
                nn.Conv2d(2 * size.width, config.pixel_codebook_size, kernel_size=1),
            )
            self.conv_out: nn.Module = nn.Identity()
        else:
            self.ffn = nn.Sequential(nn.Conv2d(size.width, 3 * patch**2, kernel_size=1), Patches(patch))
            self.conv_out = nn.Conv2d(3, 3, kernel_size=3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return pixels or scores."""
        image = self.mask_token.expand(len(tokens), self.grid**2, -1)
        image, _ = self.mix(image, self.decoder_embed(tokens))
        features = self.ln_post(image).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.conv_out(self.ffn(features))


class Patches(nn.Module):
    """Channels, ordered (row, column, colour), to the pixels of a patch."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Return [n,3,h*p,w*p] of [n,p*p*3,h,w]."""
        pixels = x.unflatten(1, (self.patch, self.patch, 3))  # [n,row,column,colour,h,w]
        return pixels.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
