"""LFQ and FSQ: codes against slow versions, straight-through gradients, entropies in closed form, and training with them."""

import itertools
import math

import pytest
import torch

from latentlab.errors import UserError
from latentlab.tokenizers.autoencoder import build_tokenizer
from latentlab.tokenizers.scalar_quantizers import FiniteScalarCodebook, SignCodebook

from .training_pass import training_pass

SMALL = {
    "ch": 8, "ch_mult": [1, 1], "norm_groups": 4, "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16,
    "z_channels": 3,
}  # fmt: skip


def features(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_signs_skip_the_gradient() -> None:
    z = features(2, 3, 4, 4).requires_grad_()
    found = SignCodebook(3)(z)
    assert torch.equal(found.latents.detach(), torch.where(z > 0, 1.0, -1.0))
    weights = features(2, 3, 4, 4, scale=2)
    (gradient,) = torch.autograd.grad((found.latents * weights).sum(), z)
    assert torch.equal(gradient, weights)
    assert torch.equal(SignCodebook(3).lookup(found.indices), found.latents.detach())


def test_entropy_of_bits_in_closed_form() -> None:
    quantizer = SignCodebook(2)
    balanced = torch.tensor([[50.0, 50.0], [-50.0, -50.0]])[:, :, None, None]  # both bits sure, and used evenly
    assert quantizer(balanced).losses["entropy"].item() == pytest.approx(-2 * math.log(2), abs=1e-5)
    assert quantizer(balanced.abs()).losses["entropy"].item() == pytest.approx(0, abs=1e-5)  # sure, and always the same
    assert quantizer(torch.zeros(2, 2, 1, 1)).losses["entropy"].item() == pytest.approx(0, abs=1e-5)  # never sure
    assert quantizer(torch.full((1, 2, 1, 1), 0.25)).losses["commitment"].item() == pytest.approx(0.75**2)


def test_entropy_of_independent_bits_is_that_of_the_codes() -> None:
    z = features(1, 3, 1, 1)
    distances = torch.stack(
        [-(z[0, :, 0, 0] - torch.tensor(c)).square().sum() for c in itertools.product((-1.0, 1.0), repeat=3)]
    )
    p = distances.softmax(0)
    of_codes = -(p * p.log()).sum()
    positive = torch.sigmoid(4 * z.flatten())
    of_bits = -(positive * positive.log() + (1 - positive) * (1 - positive).log()).sum()
    assert of_bits.item() == pytest.approx(of_codes.item(), rel=1e-5)


def test_lowering_the_entropy_spreads_and_sharpens_the_bits() -> None:
    z = torch.nn.Parameter(features(1, 4, 16, 16, scale=0.1) + 0.3)
    optimiser = torch.optim.Adam([z], lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        SignCodebook(4)(z).losses["entropy"].backward()
        optimiser.step()
    used = (z > 0).double().mean((0, 2, 3))
    assert (used > 0.3).all() and (used < 0.7).all() and z.abs().mean() > 0.5


@pytest.mark.parametrize("levels", [(3, 5), (8, 6, 5), (2, 4, 7)])
def test_every_level_is_reached_and_numbered_once(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarCodebook(levels)
    z = torch.linspace(-6, 6, 400)[None, None, None].expand(1, len(levels), 1, 400)
    values = quantizer(z).latents
    for channel, count in enumerate(levels):
        steps = (values[0, channel, 0].unique() * (count // 2)).tolist()
        assert steps == pytest.approx(list(range(-(count // 2), count - count // 2)))
    numbers = torch.arange(math.prod(levels)).view(1, -1, 1)
    codes = quantizer.lookup(numbers)
    assert len(codes[0, :, :, 0].T.unique(dim=0)) == math.prod(levels) and codes.abs().max() <= 1
    assert torch.equal(quantizer.vectors, codes[0, :, :, 0].T)


def test_levels_round_trip_and_the_gradient_is_that_of_the_squashing() -> None:
    quantizer = FiniteScalarCodebook((5, 4))
    z = features(2, 2, 3, 3).requires_grad_()
    found = quantizer(z)
    torch.testing.assert_close(quantizer.lookup(found.indices), found.latents.detach())
    (gradient,) = torch.autograd.grad(found.latents[:, 0].sum(), z)  # five levels: no offset
    wanted = 2 * 1.001 / 2 * (1 - torch.tanh(z[:, 0].detach()) ** 2)
    torch.testing.assert_close(gradient[:, 0], wanted)


@pytest.mark.parametrize(
    ("quantizer", "codes"), [({"quantizer": "lfq"}, 8), ({"quantizer": "fsq", "levels": [4, 3, 3]}, 36)]
)
def test_tokenizers_decode_their_codes(quantizer: dict[str, object], codes: int) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**SMALL, **quantizer})
    images = features(2, 3, 16, 16).clamp(-1, 1)
    output = training_pass(tokenizer, images)
    assert tokenizer.spec.codebook_size == codes and output.indices is not None and output.indices.shape == (2, 8, 8)
    assert len(tokenizer.codebook) == codes  # type: ignore[attr-defined]
    torch.testing.assert_close(tokenizer.encode(images), output.latents.detach())
    torch.testing.assert_close(tokenizer.codes(output.indices), output.latents.detach())  # type: ignore[attr-defined]
    output.reconstruction.sum().backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"quantizer": "lfq", "n_embed": 16}, r"n_embed must be 2\^3"),
        ({"quantizer": "fsq"}, "one number per channel"),
        ({"quantizer": "fsq", "levels": [4, 4]}, "must be 3 numbers"),
        ({"quantizer": "fsq", "levels": [4, 4, 1]}, "from 2 on"),
        ({"levels": [4, 4, 4]}, "belong to quantizer 'fsq'"),
    ],
)
def test_what_does_not_fit_is_told(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_tokenizer({**SMALL, **wrong})
