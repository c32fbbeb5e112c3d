"""Fresh weights of a MAETok. The network classes alone start at 0: elsewhere they are filled from files."""

import math

import torch
from torch import nn

from latentlab.tokenizers.maetok_network import RotaryPositions
from latentlab.tokenizers.transformer_initialisation import STD, initialise, mixed_frequencies
from latentlab.tokenizers.vision_transformer import ModulatedBlock, ModulatedNorm

_TOKENS = ("mask_token", "latent_tokens", "latent_pos_embed", "cls_token", "pos_embed")


def initialise_maetok(tokenizer: nn.Module, theta: float) -> None:
    """Fill linear maps, tokens, learned positions, frequencies and modulations of ``tokenizer``.

    At first the modulated norms are plain ones: scale 1 and shift 0, up to what the small weights add.

    Args:
        tokenizer: whole.
        theta: ratio that the frequencies of rotary positions span.
    """
    initialise(tokenizer)
    for name, parameter in tokenizer.named_parameters():
        if name.rpartition(".")[2] in _TOKENS:
            nn.init.trunc_normal_(parameter, std=STD)
    for module in tokenizer.modules():
        if isinstance(module, RotaryPositions) and module.rotary:
            _start_rotation(module, theta)
        elif isinstance(module, ModulatedBlock):  # shift and scale of the attention, then of the MLP
            _set_scales(module.adaLN_modulation, parts=4, scales=[1, 3])
        elif isinstance(module, ModulatedNorm):  # shift and scale
            _set_scales(module.adaLN_modulation, parts=2, scales=[1])


@torch.no_grad()
def _start_rotation(positions: RotaryPositions, theta: float) -> None:
    size = positions.size
    positions.freqs.copy_(mixed_frequencies(size.depth, size.heads, size.width // size.heads, theta))
    cells = torch.arange(len(positions.freqs_t_x))
    side = math.isqrt(len(cells))
    positions.freqs_t_x.copy_(cells % side)
    positions.freqs_t_y.copy_(cells // side)


@torch.no_grad()
def _set_scales(modulation: nn.Sequential, parts: int, scales: list[int]) -> None:
    linear = modulation[1]
    assert isinstance(linear, nn.Linear)
    nn.init.trunc_normal_(linear.weight, std=STD)
    linear.bias.view(parts, -1)[scales] = 1
