"""Weights that a user gives: found in a folder by their published name, and called by the release that they are."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlab import UserError
from latentlab.conversion import convert_checkpoint
from latentlab.data import open_data
from latentlab.encoding import encode_images
from latentlab.files import file_sha256
from latentlab.tokenizers import build_tokenizer, load_tokenizer
from latentlab.tokenizers.identify import CUSTOM, custom_release, published_file, release_of_file
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.zoo import ZOO, find_release
from latentlab.weights import WeightFile

TAEF2 = Path(__file__).parents[4] / "shared" / "data" / "taef2"
NARROW: dict[str, Any] = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
PUBLISHED = [
    (name, release.name, release.weights.filename)
    for name, releases in ZOO.items()
    for release in releases
    if release.weights is not None and release.family != "taesd"  # see test_taesd.py
]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "download").mkdir()
    return tmp_path / "download"


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_mar(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_file(build_tokenizer({**(ZOO["mar-kl16"][0].architecture or {}), **NARROW}).state_dict(), path)
    return path


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "release", "filename"), PUBLISHED)
def test_every_published_file_is_found_in_its_folder(name: str, release: str, filename: str, folder: Path) -> None:
    """Where the repository has it, and directly in the folder; with the release said, and without."""
    for inside in dict.fromkeys((filename, PurePosixPath(filename).name)):
        file = put(folder / inside)
        (folder / "README.md").touch()
        assert published_file(name, folder) == published_file(name, folder, release) == file
        file.unlink()


@pytest.mark.parametrize("name", sorted({name for name, _, _ in PUBLISHED}))
def test_a_folder_without_it_is_one_line_that_names_what_was_expected(name: str, folder: Path) -> None:
    put(folder / "weights.bin")
    with pytest.raises(UserError) as caught:
        load_tokenizer(name, weights=folder)
    message = str(caught.value)
    assert message.startswith(f"{folder} has no weights of '{name}': expected ") and "\n" not in message
    assert all(filename in message for other, _, filename in PUBLISHED if other == name)


def test_the_file_that_convert_made_comes_first(folder: Path) -> None:
    refused = put(folder / "vqgan_imagenet_f16_16384" / "ckpts" / "last.ckpt")
    assert published_file("vqgan-f16", folder) == refused
    converted = put(refused.with_suffix(".safetensors"))
    assert published_file("vqgan-f16", folder) == converted
    assert published_file("vqgan-f16", refused.parent) == converted


def test_the_checkpoint_that_a_safetensors_copy_was_made_of_is_found_too(folder: Path) -> None:
    original = put(folder / "kl16.ckpt")
    assert published_file("mar-kl16", folder) == original
    copy = put(folder / "kl16.safetensors")
    assert published_file("mar-kl16", folder) == copy


def test_files_of_several_releases_are_not_chosen_among(folder: Path) -> None:
    small, large = put(folder / "imagenet256_1024.ckpt"), put(folder / "imagenet256_262144.ckpt")
    with pytest.raises(
        UserError, match=r"several releases of 'ibq' \(imagenet256_1024\.ckpt, imagenet256_262144\.ckpt\)"
    ):
        published_file("ibq", folder)
    assert published_file("ibq", folder, "imagenet256-1024") == small
    assert published_file("ibq", folder, "imagenet256-262144") == large


def test_folders_and_files_load_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mar(folder / "kl16.safetensors")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    by_file = load_tokenizer("mar-kl16", weights=folder / "kl16.safetensors", architecture=NARROW)
    by_folder = load_tokenizer("mar-kl16", weights=str(folder), architecture=NARROW)
    assert torch.equal(by_folder.encode(images), by_file.encode(images)) and by_folder.spec == by_file.spec
    monkeypatch.setenv("HOME", str(folder.parent))
    from_home = load_tokenizer("mar-kl16", weights="~/download/kl16.safetensors", architecture=NARROW)
    assert from_home.spec == by_file.spec
    with pytest.raises(UserError, match="is a folder: give the weight file in it"):
        load_tokenizer("kl", weights=folder)  # of which nothing is published


def test_fields_of_the_authors_configuration_are_understood(folder: Path) -> None:
    path = write_mar(folder / "kl16.safetensors")
    fields = {"ddconfig": {**NARROW, "dropout": 0.0}, "use_variational": True}
    assert load_tokenizer("mar-kl16", weights=path, architecture=fields).spec.channels == 16
    with pytest.raises(UserError, match="double_z=False does not go with quantizer 'kl'"):
        load_tokenizer("mar-kl16", weights=path, architecture={**NARROW, "use_variational": False})


# --- releases ---------------------------------------------------------------------------------------------------------


def test_only_the_published_hash_makes_a_file_the_release(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mar(folder / "kl16.safetensors")
    known = ZOO["mar-kl16"][0]
    assert known.weights is not None
    file = replace(known.weights, size=None, sha256=file_sha256(path))
    monkeypatch.setitem(ZOO, "mar-kl16", (replace(known, weights=file), replace(known, name="other")))
    anywhere = put(folder / "renamed.safetensors", path.read_bytes())
    other = write_mar(folder / "b.safetensors", seed=1)
    found = [load_tokenizer("mar-kl16", weights=file, architecture=NARROW).spec for file in (path, anywhere, other)]
    assert [spec.release for spec in found] == ["imagenet256", "imagenet256", CUSTOM]
    assert found[2].scale == (0.2325,)  # the published layout and normalisation all the same
    said = load_tokenizer("mar-kl16", weights=other, architecture=NARROW, release="other")
    assert said.spec.release == "other"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """The file of a release of narrow ``mar-kl16`` that is a pickle, in latentlab's cache; its SHA-256 is published."""
    known = ZOO["mar-kl16"][0]
    file = WeightFile("lab/mar", "kl16.ckpt")
    state = load_file(write_mar(put(file.path.with_name("state"))))
    torch.save({"model": state, "args": Settings()}, file.path)
    file.path.with_name("state").unlink()
    file = replace(file, sha256=file_sha256(file.path))
    architecture = {**(known.architecture or {}), **NARROW}
    monkeypatch.setitem(ZOO, "mar-kl16", (replace(known, weights=file, architecture=architecture),))
    return file


class Settings:
    """What the restricted unpickler refuses."""


def test_own_files_that_were_altered_are_refused(published: WeightFile) -> None:
    altered = write_mar(put(published.path), seed=1)
    with pytest.raises(
        UserError, match=rf"^{altered} has SHA-256 .* it is not the published file; delete it and fetch again$"
    ):
        load_tokenizer("mar-kl16")
    of_another_size = build_tokenizer({**(ZOO["mar-kl16"][0].architecture or {}), "ch": 64})
    torch.save(of_another_size.state_dict(), published.path)
    assert load_tokenizer("mar-kl16", architecture={"ch": 64}).spec.release == "imagenet256"


def test_what_is_said_of_a_file_does_not_make_it_a_release(published: WeightFile, folder: Path) -> None:
    other = write_mar(folder / "other.safetensors", seed=1)
    spec = load_tokenizer("mar-kl16", weights=other, release="imagenet256").spec
    assert (spec.release, spec.scale) == (CUSTOM, (0.2325,))


def test_a_converted_file_is_found_beside_the_original_and_is_its_release(published: WeightFile, folder: Path) -> None:
    with pytest.raises(UserError, match=r"is refused: .* `latentlab convert"):
        load_tokenizer("mar-kl16")
    copy = published.path.with_suffix(".safetensors")
    convert_checkpoint(published.path, copy)
    found = load_tokenizer("mar-kl16").spec
    given = load_tokenizer("mar-kl16", weights=copy).spec
    assert found == given and (found.release, found.weights_sha256) == ("imagenet256", file_sha256(copy))
    alone = put(folder / copy.name, copy.read_bytes())
    assert load_tokenizer("mar-kl16", weights=alone).spec.release == CUSTOM  # its header alone proves nothing
    put(folder / published.filename, published.path.read_bytes())
    assert (
        load_tokenizer("mar-kl16", weights=alone).spec.release == CUSTOM
    )  # nor does a true original beside a file of anyone
    write_mar(published.path, seed=1)
    with pytest.raises(UserError, match="it is not the published file"):
        load_tokenizer("mar-kl16")
    assert load_tokenizer("mar-kl16", weights=copy).spec.release == CUSTOM


def test_the_name_of_the_file_chooses_the_layout_but_not_the_name(folder: Path) -> None:
    release = release_of_file("ibq", put(folder / "imagenet256_8192.ckpt"))
    assert release == replace(find_release("ibq", "imagenet256-8192"), name=CUSTOM)
    assert (
        release_of_file("ibq", put(folder / "mine.ckpt")).architecture
        == find_release("ibq", "imagenet256").architecture
    )
    assert custom_release("flux1", folder / "diffusion_pytorch_model.safetensors").weights == (
        find_release("flux1", "schnell-diffusers").weights
    )


@pytest.mark.skipif(not TAEF2.is_dir(), reason="the published TAEF2 weights are not here")
@pytest.mark.parametrize("given", ["", "taef2_encoder.pth", "taef2_decoder.pth"])
def test_both_files_of_a_pair_must_be_the_published_ones(given: str, folder: Path) -> None:
    for half in ("encoder", "decoder"):
        put(folder / f"taef2_{half}.pth", (TAEF2 / f"taef2_{half}.pth").read_bytes())
    assert load_tokenizer("taef2", weights=folder / given).spec.release == "flux2"
    state = torch.load(folder / "taef2_decoder.pth", weights_only=True)
    torch.save({name: tensor + 0.01 for name, tensor in state.items()}, folder / "taef2_decoder.pth")
    assert load_tokenizer("taef2", weights=folder / given).spec.release == CUSTOM


def test_stores_say_what_was_said(folder: Path, tmp_path: Path) -> None:
    """Latents of unknown weights are no latents of the first published release, and can be loaded by their own name."""
    path = write_mar(folder / "kl16.safetensors")
    images = open_data("fashion:test", limit=4)

    def stored(out: str, **choice: Any) -> str:
        tokenizer = load_tokenizer("mar-kl16", weights=path, architecture=NARROW, **choice)
        spec = encode_images(tokenizer, images, tmp_path / out).spec
        assert spec is not None
        return spec.release

    assert stored("a") == stored("b", release=CUSTOM) == CUSTOM
    assert stored("c", release="imagenet256") == "imagenet256"
    with pytest.raises(
        UserError, match=r"the weights of 'mar-kl16' are a file without a release .* give it with --weights"
    ):
        load_tokenizer("mar-kl16", release=CUSTOM)


def test_files_of_our_own_keep_the_release_in_their_header(folder: Path) -> None:
    architecture = '{"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 4}'
    torch.manual_seed(0)
    written = build_tokenizer(
        {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "z_channels": 4}
    )
    path, header = folder / "t.safetensors", {"architecture": architecture, "name": "kl", "release": "run7"}
    save_file(written.state_dict(), path, metadata=header)
    for release in (None, "run7"):
        assert load_tokenizer("kl", weights=path, release=release).spec.release == "run7"


def test_what_has_no_published_weights_is_custom_too(folder: Path) -> None:
    release: Release = release_of_file("ae", put(folder / "bare.safetensors"))
    assert (release.name, release.architecture) == (CUSTOM, None)
