"""Transformer tokenizers on a grid: shapes, gradients, masking, positions, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.grid_positions import THETA, axial_rotation
from latentlab.tokenizers.sequence_architecture import TransformerSize
from latentlab.tokenizers.transformer_autoencoder import TransformerAutoencoder, build_transformer

from .training_pass import training_pass

TINY: dict[str, Any] = {
    "downsampling": 4,
    "embed_dim": 6,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "resolution": 32,
}


def tiny(**fields: Any) -> TransformerAutoencoder:
    torch.manual_seed(0)
    return build_transformer({**TINY, **fields})


def pictures(n: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BOTTLENECKS = [
    {"quantizer": "none"},
    {"quantizer": "kl"},
    {"quantizer": "vq", "n_embed": 7},
    {"quantizer": "lfq"},
    {"quantizer": "fsq", "levels": [3, 3, 3, 2, 2, 2]},
]


@pytest.mark.parametrize("fields", BOTTLENECKS)
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_every_weight_gets_a_gradient(fields: dict[str, Any], masked: float) -> None:
    tokenizer = tiny(**fields, mask_ratio=masked)
    images = pictures()
    output = training_pass(tokenizer, images, seeded())
    assert output.reconstruction.shape == images.shape and output.latents.shape == (2, 6, 8, 8)
    loss = (output.reconstruction - images).square().mean() + sum(output.losses.values())
    loss.backward()
    still = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    assert ("encoder.mask_token" in tokenizer.state_dict()) == bool(masked)


@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize("channels", [4, 64])
def test_shapes_of_every_downsampling(factor: int, channels: int) -> None:
    tokenizer = tiny(downsampling=factor, embed_dim=channels).eval()
    latents = tokenizer.encode(pictures(2, 32, 48))
    assert latents.shape == (2, channels, 32 // factor, 48 // factor)
    images = tokenizer.decode(latents)
    assert images.shape == (2, 3, 32, 48) and images.abs().max() <= 1
    assert (tokenizer.spec.layout, tokenizer.spec.downsampling) == ("grid", factor)


def test_full_size_is_two_vit_b() -> None:
    """12 blocks of 12 d^2 + 13 d each and 2 layer scales, d = 768; patches and pixels 768 numbers each; 32 channels, KL."""
    with torch.device("meta"):
        tokenizer = build_transformer({"embed_dim": 32, "quantizer": "kl", "mask_ratio": 0.3})
    d = 768
    half = 12 * (12 * d * d + 13 * d + 2 * d) + 2 * d + d * d + d
    ends = d + (d * 64 + 64) + (32 * d + d)  # mask token, moments, and from the latent
    assert sum(p.numel() for p in tokenizer.parameters()) == 2 * half + ends
    assert tokenizer.architecture.latent_shape == (32, 16, 16)


def test_hidden_patches_have_no_influence_and_exactly_the_share_is_hidden() -> None:
    tokenizer = tiny(mask_ratio=0.3).eval()
    images, hidden = pictures(1), torch.zeros(1, 64, dtype=torch.bool)
    hidden[0, [0, 9, 63]] = True
    changed = images.clone()
    for patch in (0, 9, 63):
        y, x = 4 * (patch // 8), 4 * (patch % 8)
        changed[:, :, y : y + 4, x : x + 4] = 0.9
    with torch.no_grad():
        assert torch.equal(tokenizer.encoder(images, hidden), tokenizer.encoder(changed, hidden))
        assert not torch.equal(tokenizer.encoder(images), tokenizer.encoder(changed))
    images.requires_grad_(True)
    training_pass(tokenizer, images, seeded()).latents.sum().backward()
    assert images.grad is not None
    seen = images.grad.unfold(2, 4, 4).unfold(3, 4, 4).abs().amax((1, 4, 5)) > 0  # [1,8,8]
    assert (~seen).sum() == round(0.3 * 64)


def test_images_are_encoded_whole() -> None:
    """Masking is for training: without it the latents are those of a tokenizer that never masks."""
    masked, plain = tiny(mask_ratio=0.5), tiny()
    plain.load_state_dict({k: v for k, v in masked.state_dict().items() if k != "encoder.mask_token"})
    assert torch.equal(masked.encode(pictures()), plain.encode(pictures()))
    assert torch.equal(training_pass(plain, pictures()).latents, plain.encode(pictures()))


def test_draws_come_from_the_generator() -> None:
    tokenizer = tiny(mask_ratio=0.5, quantizer="kl")
    one, same, other = (training_pass(tokenizer, pictures(), seeded(seed)).latents for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_batches_do_not_matter() -> None:
    tokenizer, images = tiny(mask_ratio=0.5).eval(), pictures(3)
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    torch.testing.assert_close(alone, tokenizer.encode(images), atol=1e-5, rtol=1e-5)


def test_attention_depends_on_distances_alone() -> None:
    """Rotated dot products are those of complex numbers that turn by the difference of the positions along both axes."""
    rotation = axial_rotation(3, 4, TransformerSize(16, 1, 2), torch.device("cpu"))
    q, k = torch.randn(2, 1, 2, 1, 8, generator=seeded()).unbind()
    turned_q, turned_k = (rotation(v.expand(-1, -1, 12, -1).contiguous()) for v in (q, k))
    products = (turned_q @ turned_k.transpose(2, 3))[0]
    for a in range(12):
        for b in range(12):
            dx, dy = a % 4 - b % 4, a // 4 - b // 4
            angles = torch.tensor([dx, dx * THETA**-0.5, dy, dy * THETA**-0.5])
            complex_q, complex_k = (torch.view_as_complex(v[0, :, 0].unflatten(1, (4, 2))) for v in (q, k))
            turn = torch.polar(torch.ones(4), angles)
            expected = (complex_q * turn * complex_k.conj()).real.sum(1)
            torch.testing.assert_close(products[:, a, b], expected, atol=1e-5, rtol=1e-5)


def test_a_few_steps_lower_the_loss() -> None:
    tokenizer, images = tiny(quantizer="kl", mask_ratio=0.3).train(), pictures(4) * 0.2 + 0.3
    optimiser = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    losses = []
    for step in range(30):
        output = training_pass(tokenizer, images, seeded(step))
        loss = (output.reconstruction - images).abs().mean() + 1e-6 * output.losses["kl"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_gradients_at_the_last_layers_can_be_measured() -> None:
    tokenizer = tiny()
    output = training_pass(tokenizer, pictures())
    for loss, weight in (
        (output.latents, tokenizer.last_encoder_weight),
        (output.reconstruction, tokenizer.last_decoder_weight),
    ):
        (gradient,) = torch.autograd.grad(loss.square().sum(), weight, retain_graph=True)
        assert gradient.norm() > 0


@pytest.mark.parametrize("fields", BOTTLENECKS)
def test_files_give_the_same_tokenizer(tmp_path: Path, fields: dict[str, Any]) -> None:
    given = {**TINY, **fields, "mask_ratio": 0.3}
    torch.manual_seed(0)
    written = FAMILIES["transformer"].build(given, name="mine", release="r")
    header = {"architecture": json.dumps(given), "name": "mine", "release": "r", "family": "transformer"}
    save_file(written.released_state(), tmp_path / "t.safetensors", metadata=header)
    loaded = load_tokenizer("mine", weights=tmp_path / "t.safetensors")
    latents = written.encode(pictures())
    torch.testing.assert_close(loaded.encode(pictures()), latents, atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.decode(latents), written.decode(latents), atol=1e-6, rtol=0)
    assert (loaded.spec.name, loaded.spec.release, loaded.spec.channels) == ("mine", "r", 6)
    assert loaded.spec.codebook_size == {"vq": 7, "lfq": 64, "fsq": 216}.get(fields["quantizer"])
    if loaded.spec.discrete:
        assert torch.equal(loaded.codes(loaded.indices(pictures())), loaded.encode(pictures()))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_a_file_of_another_family_than_the_release_it_is_named_after(tmp_path: Path) -> None:
    """`latentlab train tokenizer --config ae --set family=transformer ...` writes one."""
    torch.manual_seed(0)
    written = FAMILIES["transformer"].build(TINY, name="ae", release="fashion32")
    header = {"architecture": json.dumps(TINY), "name": "ae", "release": "fashion32", "family": "transformer"}
    save_file(written.released_state(), tmp_path / "t.safetensors", metadata=header)
    for asked in (None, "fashion32"):
        loaded = load_tokenizer("ae", weights=tmp_path / "t.safetensors", release=asked)
        torch.testing.assert_close(loaded.encode(pictures()), written.encode(pictures()), atol=1e-6, rtol=0)


def test_an_unknown_family_in_a_file_is_one_line(tmp_path: Path) -> None:
    header = {"architecture": json.dumps(TINY), "family": "mamba"}
    save_file(tiny().state_dict(), tmp_path / "t.safetensors", metadata=header)
    with pytest.raises(UserError, match="family 'mamba'"):
        load_tokenizer("mine", weights=tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downsampling": 5}, "downsampling"),
        ({"resolution": 30}, "resolution 30 is no multiple of downsampling 4"),
        ({"heads": 3}, "width 32 must be a multiple of four times heads 3"),
        ({"quantizer": "vq"}, "needs n_embed"),
        ({"n_embed": 5}, "leave n_embed out"),
        ({"quantizer": "fsq", "levels": [3, 3]}, "levels must be 6 numbers"),
        ({"embed_dim": 0}, "greater than 0"),
        ({"embed_dim": "x"}, "embed_dim"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"widht": 3}, "Did you mean width"),
    ],
)
def test_impossible_architectures_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny(**fields)
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused() -> None:
    for images in (torch.zeros(1, 3, 30, 32), torch.zeros(1, 1, 32, 32)):
        with pytest.raises(UserError):
            training_pass(tiny(mask_ratio=0.5), images)
        with pytest.raises(UserError):
            tiny().encode(images)


def test_families_that_are_only_loaded_say_which_can_be_trained() -> None:
    with pytest.raises(UserError, match="choose one of ldm, transformer, maetok"):
        FAMILIES["softvq"].build({}, name="n", release="r")
