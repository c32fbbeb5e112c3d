"""Encoder and decoder of MAETok (Chen et al. 2025, arXiv 2502.03444) and SoftVQ (2412.10958), with the published names."""

import torch
from torch import Tensor, nn

from latentlab.tokenizers.maetok_architecture import MAETokArchitecture
from latentlab.tokenizers.sequence_architecture import TransformerSize
from latentlab.tokenizers.vision_transformer import EPSILON, Block, ModulatedBlock, ModulatedNorm, PatchEmbed, Rotation

Rotations = list[Rotation | None]
"""What turns queries and keys, one for each block."""


def _tokens(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, count, width))


class RotaryPositions(nn.Module):
    """Learned frequencies along both axes for every block, head and pair of channels (Heo et al. 2024, arXiv 2403.13298, eq. 14).

    Attributes:
        freqs: [2,depth,w/2]; the first along x, the second along y.
        freqs_t_x: column of each patch, [p].
        freqs_t_y: its row.
    """

    freqs_t_x: Tensor
    freqs_t_y: Tensor

    def __init__(self, size: TransformerSize, patches: int, rotary: bool) -> None:
        """Without ``rotary`` there are no parameters, and nothing is rotated."""
        super().__init__()
        self.size, self.rotary = size, rotary
        if rotary:
            self.freqs = nn.Parameter(torch.zeros(2, size.depth, size.width // 2))
            for axis in ("freqs_t_x", "freqs_t_y"):
                self.register_buffer(axis, torch.zeros(patches))

    def rotations(self, start: int) -> Rotations:
        """Return the rotations of the patches, which have ``start`` tokens of another kind before them."""
        if not self.rotary:
            return [None] * self.size.depth
        along_x, along_y = self.freqs.float()
        angles = self.freqs_t_x[:, None, None] * along_x + self.freqs_t_y[:, None, None] * along_y
        return [Rotation(of_block.unflatten(1, (self.size.heads, -1)), start) for of_block in angles.unbind(1)]


class VisionTransformer(nn.Module):
    """The encoder's transformer: a class token, patches, and whatever tokens follow."""

    def __init__(self, size: TransformerSize, patch: int, patches: int) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = _tokens(1, size.width), _tokens(1 + patches, size.width)
        self.patch_embed = PatchEmbed(patch, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=EPSILON)

    def forward(self, patches: Tensor, others: Tensor, rotations: Rotations) -> Tensor:
        """Return all tokens [n,1+p+k,w] of ``patches`` [n,p,w], which `patch_embed` gave, and ``others`` [1,k,w]."""
        n = len(patches)
        x = torch.cat([self.cls_token.expand(n, -1, -1), patches], dim=1) + self.pos_embed
        x = torch.cat([x, others.expand(n, -1, -1)], dim=1)
        for block, rotation in zip(self.blocks, rotations, strict=True):
            x = block(x, rotation)
        return self.norm(x)


class Encoder(RotaryPositions):
    """Images [n,3,S,S] -> what the latent tokens have gathered, [n,l,w]."""

    def __init__(self, config: MAETokArchitecture) -> None:
        size, patches = config.encoder_transformer, (config.image_size // config.enc_patch_size) ** 2
        super().__init__(size, patches, config.use_rope)
        self.model = VisionTransformer(size, config.enc_patch_size, patches)
        self.latent_tokens, self.latent_pos_embed = (_tokens(config.num_latent_tokens, size.width) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return [n,l,w]."""
        return self.gather(self.model.patch_embed(images))

    def gather(self, patches: Tensor) -> Tensor:
        """Return what the latent tokens gather from patches [n,p,w], [n,l,w]."""
        latent = self.latent_tokens + self.latent_pos_embed
        return self.model(patches, latent, self.rotations(start=1))[:, -latent.shape[1] :]


class ImageTransformer(nn.Module):
    """The decoder's transformer; class token, learned positions and modulated norms only where the architecture has them."""

    def __init__(self, config: MAETokArchitecture, size: TransformerSize, patches: int) -> None:
        super().__init__()
        channels = config.codebook_embed_dim
        self.modulated = config.modulated
        self.cls_token = _tokens(1, size.width) if config.dec_cls_token else None
        self.pos_embed = _tokens(1 + patches, size.width) if config.use_ape else None
        if config.modulated:
            self.blocks = nn.ModuleList(ModulatedBlock(size, channels) for _ in range(size.depth))
            self.norm: nn.Module = ModulatedNorm(size.width, channels)
        else:
            self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
            self.norm = nn.LayerNorm(size.width, eps=EPSILON)

    @property
    def prefix(self) -> int:
        """Number of tokens in front of the image tokens."""
        return 0 if self.cls_token is None else 1

    def embed(self, image: Tensor) -> Tensor:
        """Return image tokens [n,p,w] with their positions, and the class token before them."""
        if self.cls_token is not None:
            image = torch.cat([self.cls_token.expand(len(image), -1, -1), image], dim=1)
        # The first position is the class token's, whether there is one or not.
        return image if self.pos_embed is None else image + self.pos_embed[:, -image.shape[1] :]

    def forward(self, x: Tensor, rotations: Rotations, latents: Tensor) -> Tensor:
        """Return [n,k,w] of [n,k,w]; norms are modulated by latents [n,l,d], whose tokens are the last ones."""
        context = (latents,) if self.modulated else ()
        for block, rotation in zip(self.blocks, rotations, strict=True):
            x = block(x, rotation, *context)
        return self.norm(x, *context)


class ToPixel(nn.Module):
    """One linear map from a token to the pixels of its patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.model = nn.Linear(width, 3 * patch**2)

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return images [n,3,H,W] of tokens [n,p,w], row by row; the numbers of a patch are ordered (row, column, colour).

        Args:
            tokens: of all patches.
            grid: patches of a column and of a row; None where the image is square.
        """
        side = round(tokens.shape[1] ** 0.5)
        pixels = self.model(tokens).unflatten(2, (self.patch, self.patch, 3)).unflatten(1, grid or (side, side))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class TokenDecoder(RotaryPositions):
    """Latents [n,l,d] and their embeddings [n,l,w] -> one token for every patch, [n,p,w]."""

    def __init__(self, config: MAETokArchitecture, size: TransformerSize) -> None:
        patches = (config.image_size // config.dec_patch_size) ** 2
        super().__init__(size, patches, config.use_rope)
        self.patches = patches
        self.model = ImageTransformer(config, size, patches)
        self.mask_token, self.latent_pos_embed = _tokens(1, size.width), _tokens(config.num_latent_tokens, size.width)

    def tokens(self, latents: Tensor, embedded: Tensor) -> Tensor:
        """Return the tokens."""
        image = self.model.embed(self.mask_token.expand(len(latents), self.patches, -1))
        x = torch.cat([image, embedded + self.latent_pos_embed], dim=1)
        prefix = self.model.prefix
        x = self.model(x, self.rotations(prefix), latents)
        return x[:, prefix : prefix + self.patches]


class Decoder(TokenDecoder):
    """Latents [n,l,d] and their embeddings [n,l,w] -> images [n,3,S,S], not clamped."""

    def __init__(self, config: MAETokArchitecture) -> None:
        super().__init__(config, config.decoder_transformer)
        self.to_pixel = ToPixel(config.decoder_transformer.width, config.dec_patch_size)

    def forward(self, latents: Tensor, embedded: Tensor) -> Tensor:
        """Return the images."""
        return self.to_pixel(self.tokens(latents, embedded))
