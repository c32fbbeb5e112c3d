"""Tokenizers of other packages: their mistakes are theirs, in one line; what they return is what they said; their code counts."""

import copy
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from latentlab import UserError
from latentlab.codec import codec_of
from latentlab.encoding import encode_batch, weights_digest
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer
from latentlab.tokenizers.plugin import open_plugin, plugin_version

CODE = """
import torch
from latentlab import Tokenizer, TokenizerSpec
from latentlab.tokenizers import DiscreteTokenizer

class Mine(Tokenizer):
    spec = TokenizerSpec("mine", "first", "continuous", "grid", channels=3, downsampling=2)
    def encode(self, images, sample=False, generator=None):
        return images[:, :, ::2, ::2]
    def decode(self, latents):
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)

class Codes(Mine, DiscreteTokenizer):
    spec = TokenizerSpec("mine", "first", "vq", "grid", channels=1, downsampling=2, codebook_size=4)
    codebook = torch.tensor([[-1.0], [0.0], [0.5], [1.0]])
    def indices(self, images):
        return (images[:, 0, ::2, ::2] > 0).long() * 3
    def codes(self, indices):
        return self.codebook[indices].movedim(-1, 1)
    def encode(self, images, sample=False, generator=None):
        return self.codes(self.indices(images))
    def decode(self, latents):
        return super().decode(latents).expand(-1, 3, -1, -1)

def make(weights=None, architecture=None):
    return Mine(**(architecture or {}))

def make_codes(weights=None, architecture=None):
    return Codes()
"""

Opened = Callable[..., Tokenizer]
IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Return what opens the plug-in after its code was changed: text -> other text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def open_changed(before: str = "", after: str = "", *, factory: str = "make", **more: object) -> Tokenizer:
        assert before in CODE
        (tmp_path / "a_plugin.py").write_text(CODE.replace(before, after, 1) if before else CODE)
        monkeypatch.delitem(importlib.sys.modules, "a_plugin", raising=False)
        importlib.invalidate_caches()
        point = EntryPoint("mine", f"a_plugin:{factory}", "latentlab.tokenizers")
        asked = {"weights": None, "architecture": None, "release": None, **more}
        return open_plugin(point, **asked)

    return open_changed


def test_what_is_right_goes_through(opened: Opened) -> None:
    codec = codec_of(opened(release="first"))
    assert torch.equal(codec.decode(codec.encode(IMAGES))[:, :, ::2, ::2], IMAGES[:, :, ::2, ::2])
    discrete = opened(factory="make_codes")
    assert isinstance(discrete, DiscreteTokenizer)
    latents, codes = encode_batch(discrete, IMAGES)
    assert codes is not None and codes.shape == (5, 4, 4) and latents.shape == (5, 1, 4, 4)
    odd = torch.zeros(2, 3, 7, 9)  # no multiple of the downsampling: what it makes of them is its own affair
    assert opened().encode(odd).shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("return Mine(**", "raise KeyError('layer3')\n    return Mine(**", r"cannot be opened: KeyError: 'layer3' "),
        ("return Mine(**", "return dict(**", "gave a dict, not a Tokenizer"),
        ("def make(", "raise RuntimeError('no network')\n\ndef make(", "cannot be imported: RuntimeError: no network"),
        ("def make(", "def make((", "cannot be imported: SyntaxError"),
        ('spec = TokenizerSpec("mine"', 'other = TokenizerSpec("mine"', "has no specification: set spec to a TokenizerSpec"),
        ('"mine", "first", "continuous"', '"other", "first", "continuous"', "calls itself 'other' in its specification"),
        ('"first", "continuous"', '"first", "kl"', "says kind='kl'.*: choose one of continuous, vq, lfq"),
        ('"continuous", "grid"', '"continuous", "row"', "says layout='row'.*choose one of grid, sequence"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened(before: str, after: str, message: str, opened: Opened) -> None:
    with pytest.raises(UserError, match=rf"the tokenizer 'mine' \(a_plugin:make\) {message}"):
        opened(before, after)


def test_copies_are_tokenizers_of_their_own(opened: Opened) -> None:
    whole = opened("images[:, :, ::2, ::2]", "images[:, :, ::2, ::2] * getattr(self, 'factor', 1)")
    twice = copy.deepcopy(whole)
    twice.factor = 2  # type: ignore[assignment]
    assert (
        torch.equal(twice.encode(IMAGES), 2 * whole.encode(sample=False, images=IMAGES))
        and type(whole).__name__ == "Mine"
    )
    assert whole.decode(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 8, 8)


def test_unknown_fields_and_releases(opened: Opened) -> None:
    with pytest.raises(UserError, match=r"cannot be opened: TypeError: .*unexpected keyword argument 'chanels'"):
        opened(architecture={"chanels": 3})
    with pytest.raises(UserError, match="has no releases but 'first': leave release out"):
        opened(release="second")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("return images[:, :, ::2, ::2]", "return self.layer3(images)", r"encode .* failed, given \[5, 3, 8, 8\]: Attr"),
        ("return images[:, :, ::2, ::2]", "return images[:, :, ::2, ::2].numpy()", "must give a tensor, got ndarray"),
        ("return images[:, :, ::2, ::2]", "return images", r"gave latents \[5, 3, 8, 8\] .* says \[5,3,4,4\]"),
        ("return images[:, :, ::2, ::2]", "return images[:, :2, ::2, ::2]", r"gave latents \[5, 2, 4, 4\] .*3 channels"),
        ("return images[:, :, ::2, ::2]", "return images[:3, :, ::2, ::2]", r"gave latents \[3, 3, 4, 4\]"),
        ("return images[:, :, ::2, ::2]", "return images.flatten(2).mT", r"gave latents \[5, 64, 3\] .*layout grid"),
        ('"continuous", "grid"', '"continuous", "sequence"', r"gave latents \[5, 3, 4, 4\] .* says \[5,l,3\]"),
    ],
)  # fmt: skip
def test_latents_that_are_not_as_the_specification_says(before: str, after: str, message: str, opened: Opened) -> None:
    with pytest.raises(UserError, match=message):
        encode_batch(opened(before, after), IMAGES)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("latents.repeat_interleave(2, 2)", "latents.no_such(2, 2)", "decode of the tokenizer 'mine' .* failed, given"),
        (".repeat_interleave(2, 3)", ".repeat_interleave(2, 3)[:, :1]", r"must give images \[5,3,H,W\], got \[5, 1, 8, 8\]"),
        (".repeat_interleave(2, 3)", ".repeat_interleave(2, 3).tolist()", "must give a tensor, got list"),
    ],
)  # fmt: skip
def test_images_that_are_none(before: str, after: str, message: str, opened: Opened) -> None:
    with pytest.raises(UserError, match=message):
        codec_of(opened(before, after)).decode(IMAGES[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (".long() * 3", ".long() * 4", "gave indices from 0 to 4, where its specification says 4 codes"),
        (".long() * 3", ".float() * 3", "must give whole numbers, got torch.float32"),
        (".movedim(-1, 1)", "", r"must give latents \[5, 1, 4, 4\] for indices \[5, 4, 4\], got \[5, 4, 4, 1\]"),
    ],
)
def test_codes_that_are_none(before: str, after: str, message: str, opened: Opened) -> None:
    with pytest.raises(UserError, match=message):
        encode_batch(opened(before, after, factory="make_codes"), IMAGES)


def test_another_range_of_pixels_is_said_once(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    codec = codec_of(opened(".repeat_interleave(2, 3)", ".repeat_interleave(2, 3) * 127.5 + 127.5"))
    for _ in range(2):
        codec.decode(IMAGES[:, :, ::2, ::2])
    said = capsys.readouterr().err
    assert said.count("note: 'mine' decodes to values from") == 1 and "pixels should lie in [-1,1]" in said


def test_other_code_is_another_tokenizer(opened: Opened, tmp_path: Path) -> None:
    """Latents and measurements of the code before must not be taken for those of the code now."""
    point = EntryPoint("mine", "a_plugin:make", "latentlab.tokenizers")
    before, version = weights_digest(opened()), plugin_version(point)
    assert weights_digest(opened()) == before and plugin_version(point) == version
    changed = opened("images[:, :, ::2, ::2]", "10 * images[:, :, ::2, ::2]")
    assert weights_digest(changed) != before and plugin_version(point) != version
    assert weights_digest(opened(architecture={})) == before


def test_all_files_of_a_package_are_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "some_plugin_package"
    (package / "inner").mkdir(parents=True)
    for file in ("__init__.py", "inner/__init__.py", "inner/network.py"):
        (package / file).write_text("")
    point = EntryPoint("mine", "some_plugin_package.inner:make", "latentlab.tokenizers")
    before = plugin_version(point)
    (package / "inner" / "network.py").write_text("WIDTH = 2")
    after = plugin_version(point)
    (package / "inner" / "network.py").rename(package / "inner" / "another.py")
    assert len({before, after, plugin_version(point)}) == 3
    assert plugin_version(EntryPoint("gone", "no_such_package:make", "latentlab.tokenizers"))
