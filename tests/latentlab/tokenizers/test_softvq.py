"""SoftVQ: soft codes against a float64 recomputation, published layout and sizes, use with stores and measurements."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError, measure, open_data
from latentlab.codec import codec_of
from latentlab.encoding import cached_store_path, encode_images, store_request
from latentlab.latents import TokenizerSpec
from latentlab.pixels import to_unit_range
from latentlab.tokenizers import DiscreteTokenizer, load_tokenizer, maetok_architecture, softvq, zoo_entries
from latentlab.tokenizers.maetok_architecture import SoftVQArchitecture
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.releases import ZOO
from latentlab.tokenizers.sequence_architecture import TransformerSize
from latentlab.tokenizers.softvq import SoftCodebook, SoftVQ
from latentlab.weights import WeightFile

# The published file of l-32, number for number, but narrow.
PUBLISHED = """
{"codebook_embed_dim": 64, "codebook_l2_norm": true, "codebook_show_usage": true, "codebook_size": 8192,
"commit_loss_beta": 0.25, "dec_drop_path_rate": 0.0, "dec_patch_size": 16, "dec_pretrained": false, "dec_tuning_method": "full",
"dec_type": "vit", "decoder_ch_mult": [1, 1, 2, 2, 4], "decoder_model": "vit_large_patch14_dinov2.lvd142m", "dropout_p": 0.0,
"enc_drop_path_rate": 0.0, "enc_patch_size": 16, "enc_pretrained": true, "enc_tuning_method": "full", "enc_type": "vit",
"encoder_ch_mult": [1, 1, 2, 2, 4], "encoder_model": "vit_base_patch14_dinov2.lvd142m", "entropy_loss_ratio": 0.0,
"image_size": 256, "kl_loss_weight": 1e-06, "num_codebooks": 4, "num_latent_tokens": 32, "repa": false, "repa_align": "global",
"repa_layer_indices": [8], "repa_loss_weight": 0.1, "repa_model": "vit_base_patch16_224", "repa_patch_size": 16,
"repa_proj_dim": 2048, "tau": 0.07, "vq_loss_ratio": 1.0, "vq_mean": 0.00060894643, "vq_std": 0.029030401, "z_channels": 256}
"""
NARROW = {"embed_dim": (24, 32), "num_heads": (2, 4), "depth": (1, 2)}
SMALL = {"image_size": 32, "codebook_size": 24, "codebook_embed_dim": 8, "num_latent_tokens": 8}
FILE = WeightFile("lab/softvq", "model.safetensors")
SPEC = TokenizerSpec("softvq", "test", "continuous", "sequence", 8)


def published(**fields: Any) -> dict[str, Any]:
    return {**json.loads(PUBLISHED), **SMALL, **fields}


def small() -> SoftVQ:
    """A narrow model with a class token in its decoder, as in the published ones, and seeded weights."""
    kept = {name: value for name, value in published().items() if name in SoftVQArchitecture.model_fields}
    tokenizer = SoftVQ(SoftVQArchitecture(**kept, **NARROW, dec_cls_token=True), SPEC)
    generator = torch.Generator().manual_seed(0)
    for tensor in tokenizer.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return tokenizer.eval()


def publish(folder: Path, state: dict[str, Tensor], **fields: Any) -> Path:
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(published(**fields)))
    return folder / "model.safetensors"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return publish(tmp_path, small().state_dict())


def pictures(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def soft_codes_in_float64(tokens: Tensor, codebooks: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Token by token: the segment's codebook, unit vectors, softmax of cosines, mean; and the code with the largest weight."""
    n, count, _ = tokens.shape
    mixed, best = torch.zeros_like(tokens, dtype=torch.float64), torch.zeros(n, count, dtype=torch.int64)
    for i in range(n):
        for t in range(count):
            codes = codebooks[t * len(codebooks) // count].double()
            codes = codes / codes.norm(dim=1, keepdim=True)
            token = tokens[i, t].double()
            weights = (codes @ (token / token.norm()) / tau).exp()
            mixed[i, t], best[i, t] = (weights / weights.sum()) @ codes, weights.argmax()
    return mixed, best


@pytest.mark.parametrize("search_bytes", [softvq.SEARCH_BYTES, 1])
def test_soft_codes_equal_a_float64_recomputation(monkeypatch: pytest.MonkeyPatch, search_bytes: int) -> None:
    """In one piece and image by image; lengths below 1 show that the mean is not normalised again."""
    monkeypatch.setattr(softvq, "SEARCH_BYTES", search_bytes)
    codebook = SoftCodebook(codebooks=4, codes=24, channels=6, tau=0.2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        codebook.embedding.copy_(torch.randn(4, 24, 6, generator=generator))
        tokens = torch.randn(3, 8, 6, generator=generator)
        mixed, best = soft_codes_in_float64(tokens, codebook.embedding, 0.2)
        torch.testing.assert_close(codebook(tokens).double(), mixed, atol=1e-6, rtol=1e-5)
        assert torch.equal(codebook.nearest(tokens), best)
    assert mixed.norm(dim=2).max() < 1 and len(best.unique()) > 10


def test_latents_are_mixtures_and_indices_belong_to_their_own_token(file: Path) -> None:
    """With several images, where the authors' indices are out of order."""
    tokenizer = load_tokenizer("softvq", weights=file, architecture=NARROW)
    assert isinstance(tokenizer, SoftVQ) and not isinstance(tokenizer, DiscreteTokenizer)
    x = pictures()
    mixed, best = soft_codes_in_float64(tokenizer.features(x), tokenizer.quantize.embedding, 0.07)
    torch.testing.assert_close(tokenizer.encode(x).double(), mixed, atol=1e-5, rtol=1e-4)
    assert torch.equal(tokenizer.indices(x), best)
    assert torch.equal(tokenizer.indices(x[1:2]), best[1:2])


def test_published_folder_loads(file: Path) -> None:
    tokenizer, written, x = load_tokenizer("softvq", weights=file, architecture=NARROW), small(), pictures()
    latents = tokenizer.encode(x)
    torch.testing.assert_close(latents, written.encode(x))
    torch.testing.assert_close(tokenizer.decode(latents), written.decode(latents))
    spec = tokenizer.spec
    assert (spec.kind, spec.layout, spec.channels, spec.codebook_size) == ("continuous", "sequence", 8, None)
    torch.testing.assert_close(tokenizer.normalize(latents), (latents - 0.00060894643) / 0.029030401)
    torch.testing.assert_close(tokenizer.denormalize(tokenizer.normalize(latents)), latents)


def test_normalisation_is_never_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the first release for weights that are nobody's, and none for a release that keeps it in ``config.json``."""
    narrow = {name: value for name, value in published(**SMALL).items() if name in SoftVQArchitecture.model_fields}
    fields = {name: value for name, value in narrow.items() if not name.startswith("vq_")}
    monkeypatch.setattr(
        maetok_architecture, "SIZES", {"base": TransformerSize(24, 1, 2), "large": TransformerSize(32, 2, 4)}
    )
    known, other = (
        Release("a", "MIT", FILE, narrow, family="softvq"),
        Release("b", "MIT", FILE, fields, family="softvq"),
    )
    monkeypatch.setitem(ZOO, "softvq", (known, other))
    path = publish(tmp_path, small().state_dict())
    (tmp_path / "config.json").unlink()
    assert load_tokenizer("softvq", weights=path, release="a").spec.scale == (1 / 0.029030401,)
    given = load_tokenizer("softvq", weights=path, architecture={"vq_mean": 1.0, "vq_std": 2.0}).spec
    assert (given.release, given.shift, given.scale) == ("custom", (1.0,), (0.5,))
    for release in (None, "b"):
        with pytest.raises(UserError, match=r"config\.json is missing: .* --architecture vq_mean=") as caught:
            load_tokenizer("softvq", weights=path, release=release)
        assert str(tmp_path / "config.json") in str(caught.value) and "\n" not in str(caught.value)
    narrower = load_tokenizer("softvq", weights=path, architecture={"hidden_size": (24, 32), "num_heads": (2, 4)}).spec
    assert (narrower.shift, narrower.scale) == (
        (0.0,),
        (1.0,),
    )  # what the authors' code assumes of a model of another size


def test_indices_have_no_codes_and_that_is_said(file: Path) -> None:
    tokenizer = load_tokenizer("softvq", weights=file, architecture=NARROW)
    assert isinstance(tokenizer, SoftVQ)
    with pytest.raises(UserError, match="latents of 'softvq' are mixtures of many codes"):
        tokenizer.codes(tokenizer.indices(pictures()))
    with pytest.raises(UserError, match="use encode and decode"):
        _ = tokenizer.codebook
    with pytest.raises(UserError, match="for 32x32 only: give --image-size 32"):
        tokenizer.encode(torch.zeros(1, 3, 48, 48))


def test_names_are_the_published_ones() -> None:
    state = small().state_dict()
    outside = {key for key in state if ".blocks." not in key}
    assert outside == {
        *(f"encoder.{name}" for name in ("latent_tokens", "latent_pos_embed")),
        *(f"encoder.model.{name}" for name in ("cls_token", "pos_embed", "norm.weight", "norm.bias")),
        *(f"encoder.model.patch_embed.proj.{name}" for name in ("weight", "bias")),
        *(
            f"decoder.{name}"
            for name in ("mask_token", "latent_pos_embed", "to_pixel.model.weight", "to_pixel.model.bias")
        ),
        *(f"decoder.model.{name}" for name in ("cls_token", "pos_embed", "norm.weight", "norm.bias")),
        *(f"{part}.{name}" for part in ("quant_conv", "post_quant_conv") for name in ("weight", "bias")),
        "quantize.embedding",
    }
    assert state["quantize.embedding"].shape == (4, 24, 8)


def test_only_known_extra_names_are_dropped(tmp_path: Path) -> None:
    state = small().state_dict() | {
        "quantize.codebook_used": torch.zeros(4, 9),
        "repa_model.norm.weight": torch.zeros(2),
    }
    load_tokenizer("softvq", weights=publish(tmp_path, state), architecture=NARROW)
    del state["quantize.embedding"]
    path = publish(tmp_path, state | {"quantize.embedding.weight": torch.zeros(24, 8)})
    with pytest.raises(
        UserError, match=r"1 missing \(quantize.embedding\); 1 unexpected \(quantize.embedding.weight\)"
    ):
        load_tokenizer("softvq", weights=path, architecture=NARROW)
    with pytest.raises(UserError, match="3 codebooks do not share 8 latent tokens equally"):
        load_tokenizer("softvq", weights=path, architecture={**NARROW, "num_codebooks": 3})


@pytest.mark.parametrize(
    ("release", "megabytes"),
    [("b-32", 697), ("l-64", 2430), ("l-32", 1570), ("bl-64-512", 1570), ("l-32-512", 1570)],
)
def test_full_size_has_the_published_number_of_bytes(release: str, megabytes: int) -> None:
    """As the hub shows them, three digits; files hold a record of used codes, 65536 per codebook, that is not loaded."""
    architecture = next(known for known in ZOO["softvq"] if known.name == release).architecture
    with torch.device("meta"):
        tokenizer = SoftVQ(SoftVQArchitecture(**architecture, dec_cls_token=True), SPEC)
    numbers = sum(tensor.numel() for tensor in tokenizer.state_dict().values()) + 4 * 65536
    size = 4 * numbers / 1e6
    assert abs(size - megabytes) <= (0.5 if megabytes < 1000 else 5)


def test_listed() -> None:
    entries = {entry.release: entry for entry in zoo_entries() if entry.name == "softvq"}
    assert entries["bl-64"].latent_shape == (64, 32) and entries["l-32"].latent_shape == (32, 64)
    assert entries["l-32"].codebook_size is None and entries["bl-64-512"].image_size == 512


def test_configuration_and_weights_may_lie_in_different_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights came through the hub's client, ``config.json`` through `latentlab fetch`."""
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--lab--softvq" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    config = WeightFile("lab/softvq", "config.json")
    config.path.parent.mkdir(parents=True)
    publish(snapshot, small().state_dict()).with_name("config.json").rename(config.path)
    release = Release("a", "MIT", FILE, ZOO["softvq"][0].architecture, companions=(config,), family="softvq")
    monkeypatch.setitem(ZOO, "softvq", (release,))
    spec = load_tokenizer("softvq", architecture=NARROW).spec
    assert (spec.release, spec.channels, spec.shift, spec.scale) == ("a", 8, (0.00060894643,), (1 / 0.029030401,))


def test_stores_and_measurements_take_sequences(file: Path, tmp_path: Path) -> None:
    images = open_data("fashion:test", limit=24)
    tokenizer = load_tokenizer("softvq", weights=file, architecture=NARROW)
    store = encode_images(tokenizer, images, tmp_path / "store", batch_size=10)
    everything = np.arange(images.n)
    direct = tokenizer.encode(to_unit_range(images.images(everything)))
    torch.testing.assert_close(store.take(everything), direct.transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert store.shape == (8, 8) and store.grid is None and store.spec == tokenizer.spec and not store.has_codes
    assert np.isfinite(measure("viv", store=store).value)


def test_another_configuration_beside_the_weights_is_another_store(file: Path, tmp_path: Path) -> None:
    """The same file, another temperature in ``config.json``: neither weights nor specification tell."""
    images = open_data("fashion:test", limit=8)
    first = load_tokenizer("softvq", weights=file, architecture=NARROW)
    file.with_name("config.json").write_text(json.dumps(published(tau=1.0)))
    second = load_tokenizer("softvq", weights=file, architecture=NARROW)
    assert first.spec == second.spec and not torch.equal(first.encode(pictures()), second.encode(pictures()))
    assert cached_store_path(first, images) != cached_store_path(second, images)
    assert codec_of(first).fingerprint != codec_of(second).fingerprint
    stores = [encode_images(one, images, tmp_path / "store").take(slice(None)) for one in (first, second, second)]
    assert not torch.equal(stores[0], stores[1]) and torch.equal(stores[1], stores[2])
    again = load_tokenizer("softvq", weights=file, architecture=NARROW)
    assert store_request(again, images) == store_request(second, images)
