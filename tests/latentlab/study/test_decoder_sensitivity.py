"""Columns of the decoder's sensitivity against a linear decoder, whose changes have a closed form at every level."""

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlab.latents import ArrayLatents, TokenizerSpec
from latentlab.study.decoder_sensitivity import SIGMAS, decoder_sensitivity
from latentlab.tokenizers.base import Tokenizer

C, SIDE, PIXELS = 3, 2, 32
SPREADS = torch.tensor([0.5, 1.0, 3.0])[:, None, None]


class LinearTokenizer(Tokenizer):
    """Latents [n,3,2,2] -> images [n,3,32,32] by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = TokenizerSpec("linear", "test", "continuous", "grid", C, downsampling=16)
        matrix = torch.randn(C * SIDE**2, 3 * PIXELS**2, generator=torch.Generator().manual_seed(0)) / 20
        self.register_buffer("matrix", matrix)

    def encode(self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        return (images.flatten(1) @ torch.linalg.pinv(self.matrix)).view(-1, C, SIDE, SIDE)

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.flatten(1) @ self.matrix).view(-1, 3, PIXELS, PIXELS)


def latents(n: int) -> ArrayLatents:
    return ArrayLatents(torch.randn(n, C, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * SPREADS)


def test_linear_decoder_has_a_closed_form() -> None:
    """sqrt(E |A s e|^2 / pixels) = |A diag(s)|_F / sqrt(pixels) per unit of noise, at every level."""
    tokenizer, store = LinearTokenizer(), latents(600)
    found = decoder_sensitivity(tokenizer, store, n=600, sigmas=(0.05, 0.5))
    std = store.moments.std.repeat_interleave(SIDE**2)
    expected = float((tokenizer.matrix.double() * std[:, None]).norm()) / (3 * PIXELS**2) ** 0.5
    for name in ("decoder_sensitivity", "decoder_image_0.05", "decoder_image_0.1", "decoder_image_0.5"):
        assert found[name] == pytest.approx(expected, rel=0.03), name
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["decoder_sensitivity"] == found["decoder_image_0.1"] and found["n_decoder"] == 600


def test_has_the_columns_of_every_level_and_does_not_depend_on_the_shift_of_latents() -> None:
    tokenizer, store = LinearTokenizer(), latents(20)
    found = decoder_sensitivity(tokenizer, store, n=16)
    for sigma in SIGMAS:
        for kind in ("image", "perceptual", "feature"):
            values = [found[f"decoder_{kind}_{sigma:g}{end}"] for end in ("_low", "", "_high")]
            assert np.isfinite(values).all() and values[0] <= values[1] <= values[2]
    assert found["decoder_perceptual_1"] > 0 and found["decoder_feature_1"] > 0
    wider = ArrayLatents(2 * store.take(slice(None)))  # twice the unit of noise
    changed = decoder_sensitivity(tokenizer, wider, n=16)
    assert changed["decoder_image_0.2"] == pytest.approx(2 * found["decoder_image_0.2"], rel=1e-4)
