from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers.autoencoder import Autoencoder, CodebookAutoencoder, build_tokenizer

from .training_pass import training_pass

SMALL = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 16, "z_channels": 6}
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "kl": {"quantizer": "kl", "embed_dim": 4},
    "vq": {"quantizer": "vq", "n_embed": 20},
    "vq-cosine": {"quantizer": "vq-cosine", "n_embed": 20},
    "ibq": {"quantizer": "ibq", "n_embed": 20},
    "no quant convs": {"quantizer": "kl", "use_quant_conv": False, "use_post_quant_conv": False},
}


def small(kind: str, **spec: Any) -> Autoencoder:
    torch.manual_seed(0)
    return build_tokenizer({**SMALL, **KINDS[kind]}, **spec).eval()


def discrete(kind: str) -> CodebookAutoencoder:
    tokenizer = small(kind)
    assert isinstance(tokenizer, CodebookAutoencoder)
    return tokenizer


def pictures(n: int = 2, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode(kind: str) -> None:
    tokenizer, images = small(kind), pictures()
    latents = tokenizer.encode(images)
    assert latents.shape == (2, tokenizer.spec.channels, 4, 4) and not latents.requires_grad
    assert torch.equal(latents, tokenizer.encode(images))
    decoded = tokenizer.decode(latents)
    assert decoded.shape == images.shape and not decoded.requires_grad
    loud = tokenizer.decode(latents * 1e4)
    assert loud.abs().max() == 1 and tokenizer.reconstruct(latents * 1e4).abs().max() > 1


@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("channels", [4, 64])
def test_shapes_of_every_downsampling(levels: int, channels: int) -> None:
    factor = 2 ** (levels - 1)
    tokenizer = build_tokenizer({**SMALL, "ch_mult": (1,) * levels, "z_channels": channels}).eval()
    latents = tokenizer.encode(torch.zeros(2, 3, 32, 48))
    assert latents.shape == (2, channels, 32 // factor, 48 // factor)
    assert tokenizer.decode(latents).shape == (2, 3, 32, 48)
    assert (tokenizer.spec.layout, tokenizer.spec.downsampling) == ("grid", factor)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_do_not_depend_on_the_batch(kind: str) -> None:
    tokenizer, images = small(kind), pictures(3)
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    torch.testing.assert_close(alone, tokenizer.encode(images), atol=1e-5, rtol=0)


def test_spec_follows_from_the_architecture() -> None:
    spec = small("ibq", name="mine", release="first", weights_sha256="ab").spec
    assert (spec.name, spec.release, spec.weights_sha256) == ("mine", "first", "ab")
    assert (spec.kind, spec.layout, spec.channels, spec.downsampling, spec.codebook_size) == ("vq", "grid", 6, 4, 20)
    assert small("kl").spec.kind == "continuous" and small("kl").spec.codebook_size is None


def test_kl_encodes_the_mean_unless_asked_to_sample() -> None:
    tokenizer, images = small("kl"), pictures()
    with torch.no_grad():
        posterior = tokenizer.posterior(images)  # type: ignore[operator]
    assert torch.equal(tokenizer.encode(images), posterior.mean)
    draws = [tokenizer.encode(images, sample=True, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draws[0], posterior.mean + posterior.std * noise)


@pytest.mark.parametrize("kind", ["vq", "vq-cosine", "ibq"])
def test_discrete_latents_are_rows_of_the_codebook(kind: str) -> None:
    tokenizer, images = discrete(kind), pictures()
    indices = tokenizer.indices(images)
    assert indices.shape == (2, 4, 4) and indices.dtype == torch.int64
    latents = tokenizer.encode(images)
    assert torch.equal(latents.permute(0, 2, 3, 1), tokenizer.codebook[indices])
    assert torch.equal(latents, tokenizer.codes(indices))
    assert torch.equal(tokenizer.decode_indices(indices), tokenizer.decode(latents))


@pytest.mark.parametrize("kind", KINDS)
def test_training_pass_reaches_every_parameter(kind: str) -> None:
    tokenizer, images = small(kind).train(), pictures()
    output = training_pass(tokenizer, images, torch.Generator().manual_seed(0))
    assert output.reconstruction.shape == images.shape
    expected = {
        "none": set(),
        "kl": {"kl"},
        "no quant convs": {"kl"},
        "vq": {"commitment", "codebook"},
        "vq-cosine": {"commitment", "codebook"},
        "ibq": {"commitment", "codebook", "entropy"},
    }
    assert set(output.losses) == expected[kind]
    assert (output.indices is None) == (kind in ("none", "kl", "no quant convs"))
    (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
    assert not [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None]


def test_kl_training_noise_follows_the_generator() -> None:
    tokenizer, images = small("kl"), pictures()
    outputs = [training_pass(tokenizer, images, torch.Generator().manual_seed(seed)).latents for seed in (1, 1, 2)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_normalisation_per_channel() -> None:
    tokenizer = small("kl", shift=(1.0, 2.0, 3.0, 4.0), scale=(0.5,))
    latents = torch.randn(2, 4, 4, 4)
    expected = (latents - torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)) / 2
    torch.testing.assert_close(tokenizer.normalize(latents), expected)
    torch.testing.assert_close(tokenizer.denormalize(expected), latents)
    with pytest.raises(UserError, match="shift has 3 numbers, but the latent has 4 channels"):
        small("kl", shift=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 16, 18), "16x18 pixels do not fit 'custom': sides must be multiples of 4"),
        (torch.zeros(1, 3, 0, 16), "0x16 pixels do not fit"),
        (torch.zeros(1, 1, 16, 16), r"float batch \[n,3,H,W\] in \[-1,1\], got torch.float32 \[1, 1, 16, 16\]"),
        (torch.zeros(3, 16, 16), r"got torch.float32 \[3, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "got torch.uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small("none").encode(images)


def test_latents_and_indices_that_do_not_fit_are_refused() -> None:
    tokenizer = discrete("vq")
    with pytest.raises(UserError, match=r"latents must be \[n,6,h,w\], got shape \[1, 5, 4, 4\]"):
        tokenizer.decode(torch.zeros(1, 5, 4, 4))
    with pytest.raises(UserError, match=r"indices must lie in 0\.\.19, got 0\.\.20"):
        tokenizer.codes(torch.tensor([[[0, 20]]]))
    with pytest.raises(UserError, match=r"indices must be integers \[n,h,w\], got torch.float32 \[1, 2\]"):
        tokenizer.codes(torch.zeros(1, 2))


def test_double_precision_images_are_accepted() -> None:
    tokenizer, images = small("ibq"), pictures()
    assert torch.equal(tokenizer.encode(images.double()), tokenizer.encode(images))
