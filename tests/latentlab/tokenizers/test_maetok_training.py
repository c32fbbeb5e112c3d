"""MAETok in training: what is hidden, what is predicted, what is frozen, and what is in the files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import load_tokenizer, zoo
from latentlab.tokenizers.auxiliary_targets import hidden_error, open_target, target_channels
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.hog import hog
from latentlab.tokenizers.maetok_files import save_published
from latentlab.tokenizers.maetok_training import TrainableMAETok, build_maetok
from latentlab.tokenizers.maetok_training_architecture import MAETokTraining
from latentlab.tokenizers.masking import draw_hidden
from latentlab.tokenizers.release import Release

from .training_pass import training_pass

EMBEDDED: dict[str, Any] = {
    "image_size": 32,
    "encoder_model": "vit_small_patch14_dinov2",
    "decoder_model": "vit_small_patch14_dinov2_movqv2",
    "enc_patch_size": 4,
    "dec_patch_size": 4,
    "num_latent_tokens": 16,
    "codebook_embed_dim": 16,
    "use_ape": False,
    "use_rope": True,
    "rope_mixed": True,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "targets": ["hog"],
    "target_depth": 1,
}
PLAIN = {"decoder_model": "vit_small_patch14_dinov2", "use_ape": True, "dec_cls_token": True}


def fresh(**fields: Any) -> TrainableMAETok:
    torch.manual_seed(0)
    return build_maetok({**EMBEDDED, **fields}, name="maetok", release="test")


def pictures(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def total_loss(tokenizer: TrainableMAETok, images: Tensor, generator: torch.Generator) -> Tensor:
    output = training_pass(tokenizer, images, generator)
    return (output.reconstruction - images).square().mean() + sum(output.losses.values())


# --- the training pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, PLAIN])
def test_shapes_and_a_gradient_for_every_weight(fields: dict[str, Any]) -> None:
    tokenizer, images = fresh(**fields), pictures()
    output = training_pass(tokenizer, images, seeded())
    assert output.reconstruction.shape == images.shape and output.latents.shape == (2, 16, 16)
    assert set(output.losses) == {"auxiliary"}
    total_loss(tokenizer, images, seeded()).backward()
    trained = {name: p.grad for name, p in tokenizer.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None or not gradient.abs().max() > 0] == []
    frozen = {name for name, p in tokenizer.named_parameters() if not p.requires_grad}
    last = {
        f"{decoder}.model.norm.adaLN_modulation.1.{w}"
        for decoder in ("decoder", "decoder_hog")
        for w in ("weight", "bias")
    }
    assert frozen == (set() if fields else last)  # acts on latent tokens, which nobody reads after the last block


def test_hidden_patches_have_no_influence_on_latents_and_all_others_have() -> None:
    tokenizer, images = fresh(), pictures(1)
    hidden = draw_hidden(1, 64, (0.5, 0.5), seeded())
    for patch in (int(hidden[0].nonzero()[3]), int((~hidden[0]).nonzero()[3])):
        changed = images.clone()
        y, x = 4 * (patch // 8), 4 * (patch % 8)
        changed[:, :, y : y + 4, x : x + 4] = 0.9
        with torch.no_grad():
            same = torch.equal(tokenizer.encoder(images, hidden), tokenizer.encoder(changed, hidden))
        assert same == bool(hidden[0, patch])
    assert tokenizer.encoder(images, hidden).shape == (1, 16, 32)  # latent tokens all stay


def test_the_auxiliary_loss_is_the_mean_square_over_hidden_patches_alone() -> None:
    """Against a loop over patches with weights of the auxiliary decoder applied by hand."""
    tokenizer, images = fresh(), pictures(3)
    output = training_pass(tokenizer, images, seeded(4))
    hidden = draw_hidden(3, 64, (0.4, 0.6), seeded(4))
    wanted, predicted = hog(images, 4), tokenizer.predict("hog", output.latents)
    of_images = []
    for i in range(3):
        errors = [((predicted[i, p] - wanted[i, p]) ** 2).mean() for p in range(64) if hidden[i, p]]
        of_images.append(sum(errors) / len(errors))
    torch.testing.assert_close(output.losses["auxiliary"], sum(of_images) / 3)


def test_seen_patches_count_for_nothing() -> None:
    predicted = torch.zeros(2, 4, 3, requires_grad=True)
    wanted = torch.ones(2, 4, 3)
    hidden = torch.tensor([[True, False, False, True], [False, False, False, False]])
    loss = hidden_error(predicted, wanted, hidden)
    loss.backward()
    assert loss.item() == 0.5  # 1 for the first image, nothing hidden in the second
    assert predicted.grad is not None and torch.equal(predicted.grad.abs().sum(2) > 0, hidden)


def test_parts_of_a_batch_add_up() -> None:
    predicted, wanted = torch.randn(2, 8, 5, 3, generator=seeded()).unbind()
    hidden = draw_hidden(8, 5, (0.2, 0.8), seeded())
    halves = [hidden_error(predicted[h], wanted[h], hidden[h]) for h in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, hidden_error(predicted, wanted, hidden))


def test_several_targets_are_summed_and_networks_are_neither_trained_nor_saved() -> None:
    both, images = fresh(targets=["hog", "efficientnet-lite0"]), pictures(1)
    output = training_pass(both, images, seeded())
    hidden = draw_hidden(1, 64, (0.4, 0.6), seeded())
    network = open_target("efficientnet-lite0", 4, images.device)(images)
    assert network.shape == (1, 64, target_channels("efficientnet-lite0", 4))
    torch.testing.assert_close(network.mean(2), torch.zeros(1, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(network.var(2, correction=0), torch.ones(1, 64), atol=1e-2, rtol=0)
    parts = [
        hidden_error(both.predict(name, output.latents), wanted, hidden)
        for name, wanted in (("hog", hog(images, 4)), ("efficientnet-lite0", network))
    ]
    torch.testing.assert_close(output.losses["auxiliary"], parts[0] + parts[1], atol=1e-4, rtol=1e-4)
    before = set(fresh(targets=["hog", "efficientnet-lite0"]).state_dict())
    assert set(both.state_dict()) == before and "decoder_efficientnet_lite0.mask_token" in before


def test_an_unknown_target_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="vision network"):
        fresh(targets=["resnet-9000"])


def test_images_are_encoded_whole_and_batches_do_not_matter() -> None:
    tokenizer, images = fresh().eval(), pictures(3)
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images))
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    torch.testing.assert_close(alone, tokenizer.encode(images), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        whole = tokenizer.quant_conv(tokenizer.encoder(images, torch.zeros(3, 64, dtype=torch.bool)))
    assert torch.equal(whole, tokenizer.encode(images))


def test_modulated_norms_are_plain_at_first() -> None:
    """Scale 1 and shift 0 at latent tokens for a latent of 0: the decoder does not start by forgetting its latent."""
    block = fresh().decoder.model.blocks[0]
    shift_a, scale_a, shift_m, scale_m = block.adaLN_modulation(torch.zeros(1, 1, 16)).chunk(4, dim=-1)
    assert (shift_a == 0).all() and (shift_m == 0).all() and (scale_a == 1).all() and (scale_m == 1).all()


def test_first_frequencies_span_theta_in_two_directions_across() -> None:
    encoder = fresh(embed_dim=64, num_heads=2, rope_theta=10.0).encoder
    along_x, along_y = encoder.freqs.detach()
    sizes = (along_x**2 + along_y**2).sqrt().view(2, 2, 2, 8)  # block, head, along or across, frequency
    expected = 10.0 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(sizes, expected.expand(2, 2, 2, 8))
    products = (along_x.view(2, 2, 2, 8).prod(2) + along_y.view(2, 2, 2, 8).prod(2)).abs()
    assert products.max() < 1e-6
    assert encoder.freqs_t_x[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0] and encoder.freqs_t_y[8] == 1


def test_thirty_steps_lower_the_loss() -> None:
    tokenizer, images = fresh().train(), pictures(4) * 0.2 + 0.3
    optimiser = torch.optim.Adam(tokenizer.parameters(), 2e-3)
    losses = []
    for step in range(30):
        loss = total_loss(tokenizer, images, seeded(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


# --- the decoder alone ----------------------------------------------------------------------------------------------


def test_in_the_second_stage_only_the_decoder_learns_and_the_mask_vanishes(tmp_path: Path) -> None:
    first = fresh()
    path = tmp_path / "first.safetensors"
    save_file(first.released_state(), path)
    tokenizer = fresh(stage="decoder", anneal_steps=100)
    tokenizer.start_from(path)
    images = pictures()
    assert torch.equal(tokenizer.encode(images), first.encode(images))
    assert not any(name.startswith(("decoder_", "post_quant_conv_", "to_pixel_")) for name in tokenizer.state_dict())
    output = training_pass(tokenizer, images, seeded())
    assert output.losses == {}
    output.reconstruction.sum().backward()
    with_gradient = {name.partition(".")[0] for name, p in tokenizer.named_parameters() if p.grad is not None}
    assert with_gradient == {"decoder", "post_quant_conv"}
    ratios = []
    for step in (0, 25, 50, 99, 100, 200):
        tokenizer.before_step(step)
        ratios.append(tokenizer.hidden_ratios[0])
        assert tokenizer.hidden_ratios[0] == tokenizer.hidden_ratios[1]
    assert ratios == pytest.approx([0.6, 0.45, 0.3, 0.006, 0.0, 0.0])
    assert torch.equal(training_pass(tokenizer, images, seeded()).latents, tokenizer.encode(images))


def test_in_the_first_stage_steps_are_alike() -> None:
    tokenizer = fresh()
    tokenizer.before_step(1000)
    assert tokenizer.hidden_ratios == (0.4, 0.6)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_file(fresh(num_latent_tokens=4).released_state(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors does not fit the architecture.*latent_tokens"):
        fresh().start_from(tmp_path / "other.safetensors")


# --- files ----------------------------------------------------------------------------------------------------------


def assert_same(written: TrainableMAETok, path: Path, name: str = "maetok") -> None:
    loaded, images = load_tokenizer(name, weights=path), pictures()
    latents = written.encode(images)
    torch.testing.assert_close(loaded.encode(images), latents, atol=1e-6, rtol=0)
    torch.testing.assert_close(loaded.decode(latents), written.decode(latents), atol=1e-6, rtol=0)
    assert (loaded.spec.layout, loaded.spec.channels) == ("sequence", 16)
    assert loaded.spec.scale == (2.0,) and loaded.spec.shift == (0.25,)


@pytest.mark.parametrize("fields", [{}, PLAIN, {"stage": "decoder"}])
def test_loads_in_the_published_layout(tmp_path: Path, fields: dict[str, Any]) -> None:
    written = fresh(**fields, vq_mean=0.25, vq_std=0.5)
    path = save_published(written, tmp_path / "hub")
    assert_same(written, path)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (config["enc_token_drop"], config["enc_token_drop_max"], config["rope_theta"]) == (0.4, 0.6, 10.0)
    assert not {"stage", "targets", "target_depth", "anneal_steps"} & set(config)


@pytest.mark.parametrize("name", ["maetok", "my-own"])
@pytest.mark.parametrize("whole", [True, False])
def test_loads_from_latentlabs_own_file_with_auxiliary_decoders_or_without(
    tmp_path: Path, name: str, whole: bool
) -> None:
    fields = {**EMBEDDED, "vq_mean": 0.25, "vq_std": 0.5}
    torch.manual_seed(0)
    written = FAMILIES["maetok"].build(fields, name=name, release="fashion32")
    assert isinstance(written, TrainableMAETok)
    header = {"architecture": json.dumps(fields), "name": name, "release": "fashion32", "family": "maetok"}
    state = written.state_dict() if whole else written.released_state()
    save_file(state, tmp_path / "t.safetensors", metadata=header)
    assert_same(written, tmp_path / "t.safetensors", name)


def test_a_release_that_ships_is_listed_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training-only fields in the header are no obstacle, float16 weights come back as float32."""
    written = fresh()
    monkeypatch.setattr(zoo, "EMBEDDED", tmp_path)
    monkeypatch.setattr(zoo, "ZOO", {"maetok": (Release("fashion32", "MIT", family="maetok"),)})
    header = {"architecture": json.dumps(EMBEDDED), "name": "maetok", "release": "fashion32", "family": "maetok"}
    halves = {name: value.half() for name, value in written.released_state().items()}
    save_file(halves, tmp_path / "maetok_fashion32.safetensors", metadata=header)
    (entry,) = zoo.zoo_entries()
    assert (entry.kind, entry.latent_shape, entry.image_size, entry.present) == ("none", (16, 16), 32, True)
    loaded = load_tokenizer("maetok")
    latents = loaded.encode(pictures())
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, written.encode(pictures()), atol=0.02, rtol=0)


def test_names_of_full_size_are_the_published_ones() -> None:
    """With the fields of the published configuration: what latentlab reads, the mask token, and nothing else is released."""
    from latentlab.tokenizers.maetok import MAETok
    from latentlab.tokenizers.zoo import find_release

    published = find_release("maetok", "b-128").architecture
    assert published is not None
    with torch.device("meta"):
        ours = build_maetok({**published, "targets": ["hog", "dinov2-l", "clip-l"]})
        reader = MAETok(MAETokTraining(**published), ours.spec)
    names = {name: value.shape for name, value in ours.released_state().items()}
    assert names.pop("encoder.mask_token") == (1, 1, 768)
    assert names == {name: value.shape for name, value in reader.state_dict().items()}
    assert ours.to_pixel_hog.out_features == 108 and ours.to_pixel_dinov2_l.out_features == 1024
    assert len(ours.decoder_clip_l.model.blocks) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"enc_token_drop": 0.7}, "enc_token_drop 0.7 must not exceed enc_token_drop_max 0.6"),
        ({"dec_patch_size": 8}, "enc_patch_size must be dec_patch_size"),
        ({"stage": "both"}, "stage"),
        ({"targets": ["hog", "hog"]}, "targets must differ, got hog, hog"),
        ({"target": ["hog"]}, "Did you mean targets"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fresh(**fields)
    assert "\n" not in str(caught.value)


def test_reconstruct_has_gradients_and_last_layers_can_be_measured() -> None:
    tokenizer = fresh()
    latents = torch.randn(1, 16, 16, generator=seeded(), requires_grad=True)
    images = tokenizer.reconstruct(latents)
    (gradient,) = torch.autograd.grad(images.square().sum(), tokenizer.last_decoder_weight, retain_graph=True)
    assert gradient.norm() > 0
    images.sum().backward()
    assert latents.grad is not None and latents.grad.norm() > 0
    output = training_pass(tokenizer, pictures(1), seeded())
    (gradient,) = torch.autograd.grad(output.latents.square().sum(), tokenizer.last_encoder_weight)
    assert gradient.norm() > 0
