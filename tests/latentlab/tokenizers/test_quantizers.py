import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentlab.tokenizers import quantizers
from latentlab.tokenizers.quantizers import (
    Codebook,
    CosineCodebook,
    DiagonalGaussian,
    EuclideanCodebook,
    IBQCodebook,
    LookupFreeQuantizer,
    entropy_loss,
)

N, C, H, W, V = 3, 8, 4, 5, 50


KINDS = [EuclideanCodebook, CosineCodebook, IBQCodebook]


def make(kind: Callable[[int, int], Codebook], scale: float = 1.0) -> tuple[Codebook, Tensor]:
    """A codebook with normal codes, and features; of different lengths, so that the rules disagree."""
    source = torch.Generator().manual_seed(1)
    codebook = kind(V, C)
    codebook.embedding.weight.data = torch.randn(V, C, generator=source)
    return codebook, scale * torch.randn(N, C, H, W, generator=source)


def exact(codebook: Codebook, features: Tensor) -> dict[str, Tensor]:
    """All rules cell by cell in float64."""
    codes, cells = codebook.embedding.weight.detach().double(), features.double().permute(0, 2, 3, 1).unsqueeze(-2)
    return {
        "distance": (cells - codes).square().sum(-1).argmin(-1),
        "dot product": (cells * codes).sum(-1).argmax(-1),
        "angle": ((cells * codes).sum(-1) / codes.norm(dim=-1) / cells.norm(dim=-1)).arccos().argmin(-1),
    }


def test_each_codebook_follows_its_own_rule() -> None:
    found = {}
    for kind, rule in zip(KINDS, ("distance", "angle", "dot product"), strict=True):
        codebook, features = make(kind)
        found[rule] = codebook.nearest(features)
        assert torch.equal(found[rule], exact(codebook, features)[rule])
        assert found[rule].dtype == torch.int64
    for one, other in (("distance", "dot product"), ("distance", "angle"), ("angle", "dot product")):
        assert (found[one] != found[other]).float().mean() > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_search_in_parts_changes_nothing(kind: type[Codebook], monkeypatch: pytest.MonkeyPatch) -> None:
    codebook, features = make(kind)
    whole = codebook.nearest(features)
    monkeypatch.setattr(quantizers, "SEARCH_BYTES", 4 * V * 7)  # 7 of 60 rows at a time
    assert torch.equal(codebook.nearest(features), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_codes_give_the_first(kind: type[Codebook]) -> None:
    codebook, features = make(kind)
    codebook.embedding.weight.data[V // 2 :] = codebook.embedding.weight.data[: V // 2].clone()
    assert codebook.nearest(features).max() < V // 2


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_touch_the_search(kind: type[Codebook]) -> None:
    codebook, features = make(kind)
    with torch.autocast("cpu", torch.bfloat16):
        inside, quantized = codebook.nearest(features), codebook(features)
    assert torch.equal(inside, codebook.nearest(features))
    assert torch.equal(quantized.indices, inside)
    assert quantized.latents.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_training_latents_are_the_codes(kind: type[Codebook]) -> None:
    codebook, features = make(kind)
    quantized = codebook(features)
    assert torch.equal(quantized.indices, codebook.nearest(features))
    torch.testing.assert_close(quantized.latents, codebook.lookup(quantized.indices))


def test_cosine_codes_have_length_one_whatever_is_stored() -> None:
    codebook, features = make(CosineCodebook)
    directions = codebook.embedding.weight.detach().double()
    directions = (directions / directions.norm(dim=1, keepdim=True)).float()
    assert (codebook.embedding.weight.norm(dim=1) - 1).abs().min() > 0.01
    torch.testing.assert_close(codebook.vectors, directions)
    indices = codebook.nearest(features)
    torch.testing.assert_close(codebook.lookup(indices).permute(0, 2, 3, 1), directions[indices])
    assert torch.equal(codebook.nearest(7 * features), indices)


@pytest.mark.parametrize("bits", [1, 5, 18])
def test_lookup_free_codes_are_signs_and_their_numbers_binary(bits: int) -> None:
    quantizer = LookupFreeQuantizer(bits)
    features = torch.randn(N, bits, H, W, generator=torch.Generator().manual_seed(1))
    features[0, 0, 0, 0] = 0
    indices, codes = quantizer.nearest(features), quantizer.lookup(quantizer.nearest(features))
    assert indices.shape == (N, H, W) and indices.dtype == torch.int64
    assert torch.equal(codes, torch.where(features > 0, 1.0, -1.0))
    for n, h, w in ((0, 0, 0), (1, 2, 3), (2, 3, 4)):
        written = "".join("1" if value > 0 else "0" for value in reversed(features[n, :, h, w].tolist()))
        assert indices[n, h, w] == int(written, 2)  # channel 0 is the lowest bit


def test_lookup_free_codebook_lists_every_code_once() -> None:
    vectors = LookupFreeQuantizer(6).vectors(torch.device("cpu"))
    assert vectors.shape == (64, 6) and len(set(map(tuple, vectors.tolist()))) == 64
    assert vectors[0].tolist() == [-1] * 6 and vectors[1].tolist() == [1, -1, -1, -1, -1, -1]


def test_vq_gradient_goes_straight_through() -> None:
    codebook, features = make(EuclideanCodebook)
    features.requires_grad_()
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (codebook(features).latents * weight).sum().backward()
    torch.testing.assert_close(features.grad, weight)
    assert codebook.embedding.weight.grad is None


def test_vq_losses_pull_one_side_each() -> None:
    codebook, features = make(EuclideanCodebook)
    features.requires_grad_()
    losses = codebook(features).losses
    gap = (features - codebook.lookup(codebook.nearest(features))).square().mean()
    torch.testing.assert_close(losses["commitment"], gap)
    torch.testing.assert_close(losses["codebook"], gap)
    assert torch.autograd.grad(
        losses["commitment"], codebook.embedding.weight, allow_unused=True, retain_graph=True
    ) == (None,)
    assert torch.autograd.grad(losses["codebook"], features, allow_unused=True) == (None,)


def literal_ibq(codebook: Codebook, features: Tensor) -> Tensor:
    """Index backpropagation as the paper writes it, with the one-hot matrix (arXiv 2412.02692, eqs. 3 to 5)."""
    codes = codebook.embedding.weight
    soft = torch.einsum("nchw,vc->nhwv", features, codes).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), V).to(soft)
    return torch.einsum("nhwv,vc->nchw", hard - soft.detach() + soft, codes)


def test_ibq_has_value_and_gradient_of_the_one_hot_formula() -> None:
    codebook, features = make(IBQCodebook, scale=0.3)
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    gradients = []
    for quantize in (lambda x: codebook(x).latents, lambda x: literal_ibq(codebook, x)):
        x = features.clone().requires_grad_()
        latents = quantize(x)
        torch.testing.assert_close(latents, codebook.lookup(codebook.nearest(features)))
        gradients.append(torch.autograd.grad((latents * weight).sum(), (x, codebook.embedding.weight)))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert (gradients[0][1].abs().sum(1) > 0).all()  # every code, chosen or not


def test_ibq_losses() -> None:
    """Double quantization: the commitment holds the gap twice, once with the gradient of the indices."""
    codebook, features = make(IBQCodebook)
    losses = codebook(features).losses
    gap = (features - codebook.lookup(codebook.nearest(features))).square().mean()
    torch.testing.assert_close(losses["codebook"], gap)
    torch.testing.assert_close(losses["commitment"], 2 * gap)
    logits = torch.einsum("nchw,vc->nhwv", features, codebook.embedding.weight).flatten(0, 2).double()
    p = (logits / 0.01).softmax(1)
    expected = torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum()
    torch.testing.assert_close(losses["entropy"].double(), expected, atol=2e-3, rtol=0)


def test_entropy_loss_at_its_extremes() -> None:
    sure = 100 * torch.eye(16)
    assert entropy_loss(sure).item() == pytest.approx(-math.log(16), abs=1e-3)  # sure and evenly used: the minimum
    assert entropy_loss(sure[:1].repeat(16, 1)).item() == pytest.approx(0, abs=1e-3)  # sure, one code
    assert entropy_loss(torch.zeros(16, 16)).item() == pytest.approx(0, abs=1e-3)  # unsure


def test_entropy_gradient_is_finite_when_codes_are_never_used() -> None:
    logits = (1e4 * torch.eye(4, 16)).requires_grad_()
    entropy_loss(logits).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_posterior_is_the_gaussian_it_says() -> None:
    moments = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    posterior = DiagonalGaussian(moments)
    reference = Normal(moments[:, :3], (0.5 * moments[:, 3:]).exp())
    torch.testing.assert_close(posterior.std, reference.stddev)
    expected = kl_divergence(reference, Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(), expected)


def test_posterior_samples_have_its_moments_and_follow_the_generator() -> None:
    moments = torch.cat([torch.full((1, 1, 300, 300), 2.0), torch.full((1, 1, 300, 300), math.log(9.0))], dim=1)
    posterior = DiagonalGaussian(moments)
    first, again, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.mean().item() == pytest.approx(2, abs=0.04)  # 4 standard errors of 90,000 draws
    assert first.std().item() == pytest.approx(3, abs=0.03)


def test_log_variance_is_clamped() -> None:
    extreme = DiagonalGaussian(torch.tensor([0.0, 1000.0]).view(1, 2, 1, 1))
    assert extreme.logvar.item() == 20
    assert DiagonalGaussian(torch.tensor([0.0, -1000.0]).view(1, 2, 1, 1)).logvar.item() == -30
