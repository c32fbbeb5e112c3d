"""Controls: reconstruction as before, and of each map the property that makes it a control."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import latentlab
from latentlab.data import open_data
from latentlab.encoding import encode_images
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents, Latents
from latentlab.pixels import to_unit_range
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.controls import CONTROLS, make_control
from latentlab.tokenizers.controls_maps import MAPS, SHRINKAGE, STANDARDISING
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.zoo import embedded_path

LDM: dict[str, Any] = {
    "quantizer": "kl", "resolution": 32, "ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [],
    "z_channels": 3, "embed_dim": 3, "double_z": True,
}  # fmt: skip
MAETOK: dict[str, Any] = {
    "image_size": 32, "encoder_model": "vit_small_patch14_dinov2", "decoder_model": "vit_small_patch14_dinov2",
    "enc_patch_size": 8, "dec_patch_size": 8, "num_latent_tokens": 6, "codebook_embed_dim": 4, "embed_dim": 32,
    "depth": 1, "num_heads": 2, "targets": ["hog"], "target_depth": 1, "vq_mean": 0.25, "vq_std": 0.5,
}  # fmt: skip


def pictures(n: int = 64) -> Tensor:
    return to_unit_range(open_data("fashion:test").images(np.arange(n)))


def written(folder: Path, family: str, fields: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    tokenizer = FAMILIES[family].build(fields, name="base", release="test")
    header = {"architecture": json.dumps(fields), "name": "base", "release": "test", "family": family}
    save_file(tokenizer.released_state(), folder / "base.safetensors", metadata=header)
    return folder / "base.safetensors"


def latents_of(tokenizer: Tokenizer, n: int = 64) -> ArrayLatents:
    return ArrayLatents(tokenizer.encode(pictures(n)), labels=open_data("fashion:test").labels[:n], spec=tokenizer.spec)


@pytest.fixture(scope="module", params=["ldm", "maetok"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"ldm": LDM, "maetok": MAETOK}[request.param]
    return written(tmp_path_factory.mktemp("base"), request.param, fields)


@pytest.mark.parametrize("control", CONTROLS)
def test_reconstructs_as_its_base_does(base: Path, control: str, tmp_path: Path) -> None:
    """Grid and sequence; the latents themselves are others."""
    plain = load_tokenizer("base", weights=base)
    path = make_control(base, control, tmp_path / "control.safetensors", store=latents_of(plain), seed=3)
    mapped = load_tokenizer("mine", weights=path)
    images = pictures(8)
    before, after = plain.encode(images), mapped.encode(images)
    assert before.shape == after.shape and not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(mapped.decode(after), plain.decode(before), atol=2e-5, rtol=0)
    assert mapped.spec.name == "mine" and mapped.spec.release == f"test-{control}"
    units = (plain.spec.shift, plain.spec.scale) if control not in STANDARDISING else ((0.0,), (1.0,))
    assert (mapped.spec.shift, mapped.spec.scale) == units
    assert (mapped.spec.layout, mapped.spec.channels) == (plain.spec.layout, plain.spec.channels)
    assert mapped.spec.weights_sha256 not in (None, plain.spec.weights_sha256)


def test_of_the_embedded_tokenizer(tmp_path: Path) -> None:
    """The trained one, through a store on disk: latents as the map of its latents, images to the rounding of float32."""
    weights = embedded_path("kl", "fashion32")
    plain = load_tokenizer("kl", release="fashion32")
    store = encode_images(plain, open_data("fashion:test", limit=200), tmp_path / "store")
    for control in CONTROLS:
        path = make_control(weights, control, tmp_path / f"{control}.safetensors", store=store)
        mapped = load_tokenizer("kl", weights=path)
        images = pictures(16)
        expected = plain.decode(plain.encode(images))
        assert (mapped.decode(mapped.encode(images)) - expected).abs().max() < 2e-4, control
    assert encode_images(mapped, open_data("fashion:test", limit=20), tmp_path / "own").n == 20


# --- maps -----------------------------------------------------------------------------------------------------------


def made_up(n: int = 400, shape: tuple[int, ...] = (4, 4, 6), seed: int = 0) -> ArrayLatents:
    """Correlated latents with channels of different mean and scale, and cell (0,0) constant."""
    rng = np.random.default_rng(seed)
    d = int(np.prod(shape))
    rows = rng.standard_normal((n, d)) @ (np.eye(d) + 0.5 * rng.standard_normal((d, d)) / np.sqrt(d))
    latents = rows.reshape(n, *shape) * np.arange(1, shape[0] + 1)[:, None, None] + np.arange(shape[0])[:, None, None]
    latents[:, :, 0, 0] = 0.5
    return ArrayLatents(latents, labels=rng.integers(0, 4, n))


def all_of(latents: Latents) -> Tensor:
    return latents.take(slice(None)).flatten(1).float()


@pytest.mark.parametrize("control", CONTROLS)
def test_maps_are_undone(control: str) -> None:
    latents = made_up()
    mapped = MAPS[control](latents, 0)
    x = all_of(latents)
    torch.testing.assert_close(mapped.inverse(mapped(x)), x, atol=5e-5, rtol=0)


def test_orthogonal_keeps_norms_and_distances_of_standardised_latents() -> None:
    latents = made_up()
    z = latents.moments.standardise(latents.take(slice(None))).flatten(1)
    y = MAPS["orthogonal"](latents, 1)(all_of(latents)).double()
    torch.testing.assert_close(y.norm(dim=1), z.norm(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cdist(y, y), torch.cdist(z, z), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(y, MAPS["orthogonal"](latents, 2)(all_of(latents)).double(), atol=0.1)


def test_orthogonal_destroys_spatial_structure() -> None:
    """Neighbouring cells of smooth latents are alike; after mixing they are no more alike than others."""
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((300, 2, 1, 1)) + 0.3 * rng.standard_normal((300, 2, 8, 8))
    latents = ArrayLatents(smooth)

    def neighbours(rows: Tensor) -> float:
        z = rows.view(-1, 2, 8, 8)
        return float(torch.corrcoef(torch.stack([z[..., 1:].flatten(), z[..., :-1].flatten()]))[0, 1])

    assert neighbours(all_of(latents)) > 0.8
    assert abs(neighbours(MAPS["orthogonal"](latents, 0)(all_of(latents)))) < 0.1


def test_whitening_has_identity_covariance_where_there_is_variance() -> None:
    """The eigenvalue l of S becomes l / ((1-a) l + a m), with m the mean one: 1 where l >> a m, and never above 1/(1-a)."""
    latents = made_up(4000)
    y = MAPS["whitening"](latents, 0)(all_of(latents)).double().numpy()
    assert np.isfinite(y).all() and np.abs(y.mean(0)).max() < 1e-5
    z = latents.moments.standardise(latents.take(slice(None))).flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.cov(z.T))
    expected = values / ((1 - SHRINKAGE) * values + SHRINKAGE * values.mean())
    np.testing.assert_allclose(vectors.T @ np.cov(y.T) @ vectors, np.diag(expected), atol=1e-4)
    assert (values < 1e-9).sum() == 4  # the constant cell of every channel
    strong = expected[values > 0.3]
    assert len(strong) > 0.7 * len(values) and np.abs(strong - 1).max() < 0.03
    back = MAPS["whitening"](latents, 0).inverse_matrix
    assert torch.isfinite(back).all()


def test_whitening_of_fewer_images_than_coordinates_stays_finite() -> None:
    latents = made_up(30)
    mapped = MAPS["whitening"](latents, 0)
    y = mapped(all_of(made_up(30, seed=1)))
    assert torch.isfinite(y).all() and y.abs().max() < 100


def test_cells_and_channels_are_permuted_whole() -> None:
    latents = made_up()
    x = all_of(latents).view(-1, 4, 24)
    cells = MAPS["cell_permutation"](latents, 0)(x.flatten(1)).view(-1, 4, 24)
    places = [int((x == cells[:, :, i : i + 1]).all(1).all(0).nonzero()) for i in range(24)]
    assert sorted(places) == list(range(24)) != places
    channels = MAPS["channel_permutation"](latents, 0)(x.flatten(1)).view(-1, 4, 24)
    places = [int((x == channels[:, i : i + 1]).all(2).all(0).nonzero()) for i in range(4)]
    assert sorted(places) == list(range(4)) != places


def test_checkerboard_flips_every_second_cell_about_the_mean() -> None:
    latents = made_up()
    x = latents.take(slice(None))
    y = MAPS["checkerboard"](latents, 0)(all_of(latents)).view(x.shape).double()
    mean = latents.moments.mean[:, None, None]
    torch.testing.assert_close(y[:, :, 0, 0], x[:, :, 0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, :, 1, 1], x[:, :, 1, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, :, 2, 1] + x[:, :, 2, 1], (2 * mean[:, 0, 0]).expand(400, 4), atol=1e-5, rtol=0)


def test_power_law_scales_channels() -> None:
    latents = made_up()
    y = ArrayLatents(MAPS["power_law"](latents, 0)(all_of(latents)).view(-1, *latents.shape))
    np.testing.assert_allclose(y.moments.std, [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-5)


@pytest.mark.parametrize("name", ["viv", "lnc", "lds", "sec"])
def test_measurements_do_not_see_a_permutation_of_channels(name: str) -> None:
    latents = made_up(shape=(4, 8, 8))
    permuted = MAPS["channel_permutation"](latents, 0)(all_of(latents)).view(-1, *latents.shape)
    before = latentlab.measure(name, latents.take(slice(None)).float(), labels=latents.labels)
    after = latentlab.measure(name, permuted, labels=latents.labels)
    assert after.value == pytest.approx(before.value, rel=1e-5)


def test_measurements_of_neighbours_see_a_permutation_of_cells() -> None:
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((60, 4, 4, 4)).repeat(2, axis=2).repeat(2, axis=3)
    latents = ArrayLatents(smooth)
    permuted = MAPS["cell_permutation"](latents, 0)(all_of(latents)).view(-1, *latents.shape)
    assert latentlab.measure("lds", permuted).value < latentlab.measure("lds", smooth).value / 2


# --- refusals -------------------------------------------------------------------------------------------------------


def test_refuses_what_has_no_controls(tmp_path: Path) -> None:
    out, latents = tmp_path / "c.safetensors", made_up()
    with pytest.raises(UserError, match=r"unknown control 'orthogonl'.*orthogonal"):
        make_control(embedded_path("kl", "fashion32"), "orthogonl", out, store=latents)
    with pytest.raises(UserError, match="discrete"):
        make_control(embedded_path("ibq", "fashion32"), "orthogonal", out, store=latents)
    with pytest.raises(UserError, match="not made by"):
        make_control(embedded_path("kl", "fashion32"), "orthogonal", out, store=latents)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no weight file of latentlab's own"):
        make_control(tmp_path / "other.safetensors", "orthogonal", out, store=latents)
    assert not out.exists()


def test_refuses_files_and_latents_that_do_not_fit(tmp_path: Path) -> None:
    base = written(tmp_path, "ldm", LDM)
    store = latents_of(load_tokenizer("base", weights=base))
    path = make_control(base, "checkerboard", tmp_path / "c.safetensors", store=store)
    control = load_tokenizer("c", weights=path)
    with pytest.raises(UserError, match=r"maps latents \[3, 8, 8\], got \[3, 4, 4\]"):
        control.decode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match="a control already"):
        make_control(path, "orthogonal", tmp_path / "d.safetensors", store=store)
    with pytest.raises(UserError, match="leave out ch"):
        load_tokenizer("c", weights=path, architecture={"ch": 4})
    with pytest.raises(UserError, match="1 channels: there is nothing to permute"):
        MAPS["channel_permutation"](ArrayLatents(np.random.default_rng(0).standard_normal((5, 1, 2, 2))), 0)
    tensors = {name: value for name, value in load_file(path).items() if name != "map.order"}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(tensors, tmp_path / "e.safetensors", metadata=header)
    with pytest.raises(UserError, match=r"is damaged: 1 missing \(map.order\)"):
        load_tokenizer("c", weights=tmp_path / "e.safetensors")
