import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latentlab import UserError
from latentlab.cli.main import app
from latentlab.tokenizers import (
    DiscreteTokenizer,
    Tokenizer,
    build_tokenizer,
    default_release,
    load_tokenizer,
    tokenizer_names,
    zoo_entries,
)
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.zoo import ENTRY_POINTS, ZOO, published_namesake
from latentlab.weights import WeightFile

TINY = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16, "z_channels": 4}
EMBEDDED = [
    (name, release.name)
    for name, releases in ZOO.items()
    for release in releases
    if release.embedded and release.family != "mind"  # see test_sphere.py
]


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def write_own(path: Path, architecture: Mapping[str, Any], name: str = "mine", release: str = "run1") -> Tokenizer:
    """A weight file as training writes it, and the tokenizer in it."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(architecture)
    header = {"architecture": json.dumps(dict(architecture)), "name": name, "release": release, "training": "{}"}
    save_file({key: value.half() for key, value in tokenizer.state_dict().items()}, path, metadata=header)
    return tokenizer.half().float()


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_release_can_be_listed() -> None:
    entries = {(entry.name, entry.release): entry for entry in zoo_entries()}
    assert {name for name, _ in entries} == set(tokenizer_names())
    shapes = {
        ("ibq", "imagenet256"): ("ibq", (256, 16, 16), 16384),
        ("ibq", "imagenet256-1024"): ("ibq", (256, 16, 16), 1024),
        ("vqgan-f16", "imagenet256"): ("vq", (256, 16, 16), 16384),
        ("mar-kl16", "imagenet256"): ("kl", (16, 16, 16), None),
        ("va-vae", "imagenet256"): ("kl", (32, 16, 16), None),
        ("sd-vae", "ft-mse"): ("kl", (4, 32, 32), None),
    }
    for key, expected in shapes.items():
        entry = entries[key]
        assert (entry.kind, entry.latent_shape, entry.codebook_size) == expected
        assert entry.licence and entry.source and entry.source.filename and not entry.present


def test_sizes_are_those_published_else_those_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where all are known, rounded where that is all there is, unknown else; configuration files do not count."""

    def size(*files: WeightFile) -> tuple[int | None, str]:
        release = Release("r", "MIT", files[0], {"latent_channels": 4}, companions=files[1:], family="taesd")
        monkeypatch.setitem(ZOO, "toy", (release,))
        entry = next(entry for entry in zoo_entries() if entry.name == "toy")
        return entry.size, entry.size_text

    config = WeightFile("lab/toy", "config.json")
    first, second = (WeightFile("lab/toy", name, size=1_500_000) for name in ("a.pth", "b.pth"))
    assert size(first, second, config) == (3_000_000, "3.0 MB")
    rounded = WeightFile("lab/toy", "c.pth", megabytes=888)
    assert size(rounded, config) == (None, "about 888 MB") and size(first, rounded) == (None, "about 890 MB")
    assert size(WeightFile("lab/toy", "d.pth")) == (None, "unknown")
    rounded.path.parent.mkdir(parents=True)
    rounded.path.write_bytes(bytes(777))
    assert size(rounded) == (777, "0.0 MB")


@pytest.mark.parametrize(
    "name", ["mar-kl16", "va-vae", "sd-vae", "flux1", "flux2", "ibq", "vqgan-f16", "llamagen-vq16", "llamagen-vq8"]
)
def test_listed_latents_are_those_the_networks_make(name: str) -> None:
    """Without memory for the numbers: an image of the listed size through the published network, narrower and with few blocks."""
    for entry in (entry for entry in zoo_entries() if entry.name == name and entry.source is not None):
        release = next(release for release in ZOO[name] if release.name == entry.release)
        fields = {**(release.architecture or {}), "ch": 32, "num_res_blocks": 1}
        with torch.device("meta"):
            tokenizer = build_tokenizer(fields | ({"n_embed": 8} if "n_embed" in fields else {}))
            image = torch.empty(1, 3, entry.image_size or 0, entry.image_size or 0)
        discrete = isinstance(tokenizer, DiscreteTokenizer)
        latents = tokenizer.features(image) if discrete else tokenizer.encode(image)
        assert latents.shape[1:] == entry.latent_shape
        assert tokenizer.decode(latents).shape == image.shape


def test_absent_weights_name_the_command_that_fetches_them() -> None:
    with pytest.raises(
        UserError,
        match=r"kl16\.safetensors .*for example: latentlab fetch mar-kl16 --release imagenet256; or give --weights PATH$",
    ):
        load_tokenizer("mar-kl16")


def test_absent_weights_are_all_named_with_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    folder = tmp_path / "weights" / "madebyollin--taesd"
    with pytest.raises(UserError) as caught:
        load_tokenizer("taef2")
    message = str(caught.value)
    for half in ("encoder", "decoder"):
        assert f"taef2_{half}.pth (2.7 MB)" in message and str(folder / f"taef2_{half}.pth") in message
    assert message.endswith("latentlab fetch taef2 --release flux2; or give --weights PATH") and "\n" not in message


def test_names_that_are_easily_mistaken_for_published_ones() -> None:
    assert published_namesake("vavae") == "va-vae" and published_namesake("eq") == "eq-vae"
    assert all(published_namesake(name) is None for name in ("ae", "kl", "vq", "ibq", "mind", "va-vae", "none such"))


def test_the_page_of_tokenizers_is_up_to_date() -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = runpy.run_path(str(docs / "make_tokenizers.py"))["page"]
    text = (docs / "tokenizers.md").read_text()
    assert page(text) == text, "run `make cards`"
    for command in re.findall(r"^    latentlab (fetch|convert|encode) ", text, re.MULTILINE):
        assert command in {c.name or c.callback.__name__ for c in app.registered_commands}


def test_listing_imports_no_torch() -> None:
    code = "import sys; from latentlab.tokenizers import zoo_entries; zoo_entries(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


@pytest.mark.parametrize(("name", "release"), EMBEDDED)
def test_embedded_weights_load_and_are_small(name: str, release: str) -> None:
    entry = next(entry for entry in zoo_entries() if (entry.name, entry.release) == (name, release))
    assert entry.path is not None and entry.path.stat().st_size <= 3_000_000
    tokenizer = load_tokenizer(name)
    assert (tokenizer.spec.name, tokenizer.spec.release) == (name, release)
    images = torch.zeros(1, 3, 32, 32)
    assert tokenizer.encode(images).shape[1:] == entry.latent_shape
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape


def test_the_data_set_selects_the_release() -> None:
    assert default_release("ibq", "fashion") == "fashion32"
    assert default_release("ibq", "imagefolder") == default_release("ibq", "parquet") == "imagenet256"
    assert default_release("ae", "imagefolder") == "fashion32"
    assert default_release("va-vae", "fashion") == "imagenet256"
    with pytest.raises(UserError, match=r"unknown tokenizer 'ibk'\. Did you mean ibq"):
        default_release("ibk", "fashion")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantizer"), [("ae", {}), ("kl", {"quantizer": "kl"}), ("ibq", {"quantizer": "ibq", "n_embed": 9})]
)
def test_own_files_record_their_architecture(tmp_path: Path, name: str, quantizer: dict[str, Any]) -> None:
    path = tmp_path / "tokenizer.safetensors"
    written = write_own(path, TINY | quantizer)
    tokenizer = load_tokenizer(name, weights=path)
    torch.testing.assert_close(tokenizer.encode(pictures()), written.encode(pictures()))
    assert (tokenizer.spec.name, tokenizer.spec.release, tokenizer.spec.downsampling) == (name, "run1", 2)
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    assert len(tokenizer.spec.weights_sha256 or "") == 64


def test_own_files_may_have_any_name(tmp_path: Path) -> None:
    write_own(tmp_path / "t.safetensors", TINY)
    spec = load_tokenizer("my-very-own", weights=str(tmp_path / "t.safetensors")).spec
    assert (spec.name, spec.release, spec.shift, spec.scale) == ("my-very-own", "run1", (0.0,), (1.0,))


NARROW = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}


@pytest.mark.parametrize("name", ["mar-kl16", "vqgan-f16"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_published_layouts_with_and_without_wrapper(name: str, wrapper: str | None, tmp_path: Path) -> None:
    fields = NARROW | ({"n_embed": 12} if name == "vqgan-f16" else {})
    torch.manual_seed(1)
    expected = build_tokenizer({**(ZOO[name][0].architecture or {}), **fields})
    state = {**expected.state_dict(), "loss.discriminator.weight": torch.zeros(3)}
    torch.save({wrapper: state, "epoch": 3, "optimizer_states": [{}]} if wrapper else state, tmp_path / "last.ckpt")
    tokenizer = load_tokenizer(name, weights=tmp_path / "last.ckpt", architecture=fields)
    torch.testing.assert_close(tokenizer.encode(pictures()), expected.encode(pictures()))
    assert tokenizer.spec.release == "custom"  # nobody said that it is the published one, and its hash says it is not
    assert tokenizer.spec.scale == ((0.2325,) if name == "mar-kl16" else (1.0,))


def test_mar_as_safetensors(tmp_path: Path) -> None:
    expected = build_tokenizer({**(ZOO["mar-kl16"][0].architecture or {}), **NARROW})
    save_file(expected.state_dict(), tmp_path / "kl16.safetensors")
    tokenizer = load_tokenizer("mar-kl16", weights=tmp_path / "kl16.safetensors", architecture=NARROW)
    latents = tokenizer.encode(pictures())
    torch.testing.assert_close(latents, expected.encode(pictures()))
    torch.testing.assert_close(tokenizer.normalize(latents), latents * 0.2325)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_published_architectures_are_valid(name: str) -> None:
    for release in ZOO[name]:
        if release.architecture is not None:
            channels = read_architecture(release.architecture, FAMILIES[release.family].architecture).latent_shape[0]
            assert len(release.shift) in (1, channels) and len(release.scale) in (1, channels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ibk"}, r"unknown tokenizer 'ibk'\. Did you mean ibq.*Available: .*va-vae"),
        (
            {"name": "ibq", "release": "imagenet"},
            r"unknown release of tokenizer 'ibq' 'imagenet'\. Did you mean imagenet256",
        ),
        (
            {"name": "ibq", "release": "imagenet256"},
            r"imagenet256_16384\.ckpt .*TencentARC/IBQ-Tokenizer-16384 and put",
        ),
        ({"name": "ibq", "weights": "absent.ckpt"}, r"absent\.ckpt does not exist"),
        ({"name": "ibq", "weights": "absent.safetensors"}, r"absent\.safetensors does not exist"),
        (
            {"name": "ibq", "weights": "."},
            r"^\. has no weights of 'ibq': expected imagenet256_16384\.ckpt or imagenet256_1024",
        ),
        ({"name": "ibq", "device": "tpu"}, r"unknown device 'tpu'"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(**arguments)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"state_dict": Attack()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"evil\.ckpt is refused"):
        load_tokenizer("ibq", weights=tmp_path / "evil.ckpt")
    assert not (tmp_path / "was-run").exists()


def test_a_file_that_says_nothing_about_its_architecture_needs_it(tmp_path: Path) -> None:
    written = build_tokenizer(TINY)
    save_file(written.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="does not record its architecture, and 'ae' has no published one"):
        load_tokenizer("ae", weights=tmp_path / "bare.safetensors")
    tokenizer = load_tokenizer("ae", weights=tmp_path / "bare.safetensors", architecture=TINY)
    torch.testing.assert_close(tokenizer.encode(pictures()), written.encode(pictures()))


@pytest.mark.parametrize("header", ["not json", "[1]"])
def test_a_damaged_header_is_named(tmp_path: Path, header: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "t.safetensors", metadata={"architecture": header})
    with pytest.raises(UserError, match=r"t\.safetensors: .*header"):
        load_tokenizer("ae", weights=tmp_path / "t.safetensors")


# --- plug-ins -------------------------------------------------------------------------------------------------------


class Halves(Tokenizer):
    """The smallest tokenizer there is: every second pixel."""

    spec = build_tokenizer(TINY, name="halves").spec

    def encode(self, images: torch.Tensor, sample: bool = False, generator: Any = None) -> torch.Tensor:
        return images[:, :, ::2, ::2]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halves(weights: Any, architecture: Any) -> Tokenizer:
    tokenizer = Halves()
    tokenizer.given = (weights, architecture)  # type: ignore[assignment]
    return tokenizer


def nothing(weights: Any, architecture: Any) -> dict[str, Any]:
    return {}


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Pretend that a package with this entry point is installed."""
    point = metadata.EntryPoint(name, value, ENTRY_POINTS)
    real = metadata.entry_points
    monkeypatch.setattr(
        metadata, "entry_points", lambda **chosen: [point] if chosen == {"group": ENTRY_POINTS} else real(**chosen)
    )
    monkeypatch.setitem(sys.modules, "some_package", sys.modules[__name__])


def test_plugins_load_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "halves", "some_package:halves")
    assert tokenizer_names()[-1] == "halves"
    assert zoo_entries()[-1].release == "plug-in"
    assert default_release("halves", "fashion") is None
    tokenizer = load_tokenizer("halves", weights="w", architecture={"a": 1})
    assert isinstance(tokenizer, Halves) and tokenizer.given == ("w", {"a": 1}) and not tokenizer.training
    with pytest.raises(UserError, match="has no releases"):
        load_tokenizer("halves", release="first")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("absent_package:make", r"'odd' \(absent_package:make\) cannot be imported: ModuleNotFoundError: No module"),
        ("some_package:absent", r"'odd' \(some_package:absent\) cannot be imported"),
        ("some_package:nothing", r"gave a dict, not a Tokenizer"),
    ],
)
def test_broken_plugins_are_named(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "odd", value)
    assert "odd" in tokenizer_names()
    with pytest.raises(UserError, match=message):
        load_tokenizer("odd")


def test_plugins_cannot_replace_built_in_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "ibq", "some_package:halves")
    with pytest.raises(UserError, match="a plug-in registers the tokenizer 'ibq'"):
        tokenizer_names()
