"""Encoding images into a store: what is stored, resume, reuse, independence of the batch size, and what is refused."""

import os
import re
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentlab import UserError, open_data, store_writer
from latentlab.data import ImageSet
from latentlab.data.mirrored import MirroredImages
from latentlab.encoding import (
    cached_store_path,
    default_batch_size,
    encode_images,
    open_tokenizer,
    slug,
    store_request,
    unique_slug,
)
from latentlab.pixels import to_unit_range
from latentlab.ranks import Ranks
from latentlab.tokenizers import build_tokenizer, load_tokenizer
from mind.run_config import DataConfig
from mind.stores import open_stores

TINY = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 4, "resolution": 32, "attn_resolutions": ()}


def tiny(quantizer: str = "none", seed: int = 0):
    torch.manual_seed(seed)
    return build_tokenizer({**TINY, "quantizer": quantizer, **({"n_embed": 16} if quantizer == "ibq" else {})}).eval()


@pytest.fixture
def images() -> ImageSet:
    return open_data("fashion:test", limit=23)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "SHARD_IMAGES", 7)


def test_store_holds_what_the_tokenizer_gives(images: ImageSet, tmp_path: Path) -> None:
    tokenizer = tiny()
    store = encode_images(tokenizer, images, tmp_path / "a store", batch_size=5)
    everything = np.arange(images.n)
    direct = tokenizer.encode(images.images(everything).float() / 127.5 - 1)
    assert torch.allclose(store.take(everything), direct, atol=1e-5)
    assert np.array_equal(store.labels, images.labels)
    assert torch.equal(store.masks(everything), images.masks(everything))
    assert store.class_names == images.class_names and store.spec == tokenizer.spec and not store.has_codes


def test_discrete_latents_are_the_entries_their_codes_name(images: ImageSet, tmp_path: Path) -> None:
    tokenizer = tiny("ibq")
    store = encode_images(tokenizer, images, tmp_path / "store")
    codes = store.codes(slice(None))
    assert torch.equal(codes, tokenizer.indices(to_unit_range(images.images(np.arange(images.n)))))
    assert torch.equal(store.take(slice(None)), tokenizer.codebook[codes].permute(0, 3, 1, 2))


def test_batch_size_does_not_matter(images: ImageSet, tmp_path: Path) -> None:
    stores = [encode_images(tiny(), images, tmp_path / str(size), batch_size=size) for size in (1, 6, 64)]
    for other in stores[1:]:
        assert torch.allclose(stores[0].take(slice(None)), other.take(slice(None)), atol=1e-5)
        assert np.array_equal(stores[0].labels, other.labels)


def count(tokenizer, monkeypatch: pytest.MonkeyPatch, break_after: int | None = None) -> list[int]:
    """Note how many images each call encodes; raise KeyboardInterrupt in the call after ``break_after`` of them."""
    seen: list[int] = []
    encode = type(tokenizer).encode

    def counted(images: Tensor, **options: object) -> Tensor:
        if len(seen) == break_after:
            raise KeyboardInterrupt
        seen.append(len(images))
        return encode(tokenizer, images, **options)

    monkeypatch.setattr(tokenizer, "encode", counted)
    return seen


@pytest.mark.parametrize("sample", [False, True])
def test_interrupted_run_continues_identically(
    sample: bool, images: ImageSet, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"batch_size": 5, "sample": sample, "seed": 3}
    whole = encode_images(tiny("kl"), images, tmp_path / "whole", **options)
    tokenizer = tiny("kl")
    count(tokenizer, monkeypatch, break_after=3)  # 15 images: two shards of 7, and one of one
    with pytest.raises(KeyboardInterrupt):
        encode_images(tokenizer, images, tmp_path / "broken", **options)
    monkeypatch.undo()
    monkeypatch.setattr(store_writer, "SHARD_IMAGES", 7)
    seen = count(tokenizer, monkeypatch)
    continued = encode_images(tokenizer, images, tmp_path / "broken", **options)
    assert sum(seen) == images.n - 15
    assert torch.equal(continued.take(slice(None)), whole.take(slice(None)))
    assert continued.fingerprint == whole.fingerprint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_encoded_before_a_signal_is_kept(
    number: signal.Signals, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode_images(tiny("kl"), images, tmp_path / "whole", batch_size=5)
    tokenizer = tiny("kl")
    encode, asked = tokenizer.encode, []

    def asked_to_stop(images: Tensor, **options: object) -> Tensor:
        asked.append(len(images))
        if len(asked) == 3:
            os.kill(os.getpid(), number)
        return encode(images, **options)

    monkeypatch.setattr(tokenizer, "encode", asked_to_stop)
    with pytest.raises(KeyboardInterrupt):
        encode_images(tokenizer, images, tmp_path / "stopped", batch_size=5)
    assert sum(asked) == 15  # the batch in progress is finished
    monkeypatch.undo()
    seen = count(tokenizer, monkeypatch)
    continued = encode_images(tokenizer, images, tmp_path / "stopped", batch_size=5)
    assert sum(seen) == images.n - 15 and torch.equal(continued.take(slice(None)), whole.take(slice(None)))
    assert np.array_equal(continued.labels, whole.labels) and continued.fingerprint == whole.fingerprint


def test_finished_store_is_reused_until_something_changes(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny()
    first = encode_images(tokenizer, images, tmp_path / "store")
    seen = count(tokenizer, monkeypatch)
    assert encode_images(tokenizer, images, tmp_path / "store").fingerprint == first.fingerprint and not seen
    encode_images(tokenizer, images, tmp_path / "store", dtype="float16")
    assert sum(seen) == images.n
    encode_images(tokenizer, open_data("fashion:test", limit=22), tmp_path / "store")
    assert sum(seen) == images.n + 22


def test_sampling_depends_on_the_seed_only(images: ImageSet, tmp_path: Path) -> None:
    def encoded(name: str, **options: object) -> Tensor:
        return encode_images(tiny("kl"), images, tmp_path / name, **options).take(slice(None))

    assert torch.equal(encoded("a", sample=True, seed=1), encoded("b", sample=True, seed=1))
    assert not torch.equal(encoded("a", sample=True, seed=1), encoded("c", sample=True, seed=2))
    assert torch.equal(encoded("d", seed=1), encoded("e", seed=2))  # the mode needs no seed


@pytest.mark.parametrize("quantizer", ["none", "ibq"])
def test_mirrored_images_are_encoded_beside_the_others(quantizer: str, images: ImageSet, tmp_path: Path) -> None:
    tokenizer = tiny(quantizer)
    store = encode_images(tokenizer, images, tmp_path / "store", batch_size=5, flip=True)
    assert torch.equal(
        store.take(slice(None)), encode_images(tokenizer, images, tmp_path / "plain", batch_size=5).take(slice(None))
    )
    direct = encode_images(tokenizer, MirroredImages(images), tmp_path / "mirrored", batch_size=5)
    mirrored = store.mirrored()
    assert torch.equal(mirrored.take(slice(None)), direct.take(slice(None)))
    assert torch.equal(mirrored.masks(slice(None)), direct.masks(slice(None)))
    assert mirrored.has_codes == direct.has_codes == (quantizer == "ibq")
    if mirrored.has_codes:
        assert torch.equal(mirrored.codes(slice(None)), direct.codes(slice(None)))
    shard = load_file(next(store.path.glob("latents_rank00_shard000.safetensors")))
    assert {"latents", "latents_flip", "labels"} <= set(shard)  # LightningDiT's names


def test_generators_train_on_both_sides_of_one_store(images: ImageSet, tmp_path: Path) -> None:
    tokenizer = tiny("ibq")
    stores = {flip: encode_images(tokenizer, images, tmp_path / f"flip {flip}", flip=flip) for flip in (False, True)}

    def sides(flip: bool, **options: object) -> int:
        data = DataConfig(tokenizer="custom", store=stores[flip].path, **options)
        opened = open_stores(data, tokenizer, torch.device("cpu"), "float32").train
        assert torch.equal(
            opened[-1].codes(slice(None)),
            (stores[flip].mirrored() if len(opened) == 2 else stores[flip]).codes(slice(None)),
        )
        return len(opened)

    assert (sides(True), sides(True, mirror=False), sides(False)) == (2, 1, 1)


def test_draws_for_mirrored_images_are_their_own(images: ImageSet, tmp_path: Path) -> None:
    store = encode_images(tiny("kl"), images, tmp_path / "a", sample=True, seed=1, flip=True)
    assert torch.equal(
        store.take(slice(None)),
        encode_images(tiny("kl"), images, tmp_path / "b", sample=True, seed=1).take(slice(None)),
    )
    symmetric = Symmetric(images)
    drawn = encode_images(tiny("kl"), symmetric, tmp_path / "c", sample=True, seed=1, flip=True)
    assert not torch.allclose(drawn.take(slice(None)), drawn.mirrored().take(slice(None)))


class Symmetric(MirroredImages):
    """Images that are their own mirror images."""

    def images(self, indices: np.ndarray) -> Tensor:
        left = super().images(indices)[..., :16]
        return torch.cat([left, left.flip(3)], dim=3)


def test_bfloat16_is_close_and_another_store(images: ImageSet, tmp_path: Path) -> None:
    exact = encode_images(tiny(), images, tmp_path / "a").take(slice(None))
    store = encode_images(tiny(), images, tmp_path / "a", precision="bfloat16")
    rounded = store.take(slice(None))
    difference = (rounded - exact).abs().max() / exact.abs().max()
    assert 1e-4 < difference < 0.05  # 8 bits of mantissa in every layer
    assert store.manifest.request["precision"] == "bfloat16"
    codes = [
        encode_images(tiny("ibq"), images, tmp_path / f"ibq-{precision}", precision=precision).codes(slice(None))
        for precision in ("float32", "bfloat16")
    ]
    assert (codes[0] == codes[1]).float().mean() > 0.9
    with pytest.raises(UserError, match="precision must be one of float32, bfloat16, got 'half'"):
        encode_images(tiny(), images, tmp_path / "a", precision="half")


def test_float32_is_float32_on_a_gpu_too(images: ImageSet, tmp_path: Path) -> None:
    """As far as a CPU can tell: convolutions on a GPU would round their inputs to 10 bits unless told not to."""
    tokenizer, told = tiny(), []
    tokenizer.encoder.register_forward_pre_hook(lambda *_: told.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    for precision in ("float32", "bfloat16"):
        encode_images(tokenizer, images, tmp_path / precision, precision=precision)
    assert told == [False, before] and torch.backends.cudnn.allow_tf32 == before


def test_options_that_are_off_leave_the_request_as_it_was(images: ImageSet) -> None:
    """Stores made before there was a choice stay valid."""
    assert set(store_request(tiny(), images)) == {
        "latentlab",
        "tokenizer",
        "weights",
        "data",
        "images",
        "dtype",
        "draws",
    }
    requests = [store_request(tiny(), images, **options) for options in ({}, {"flip": True}, {"precision": "bfloat16"})]
    assert len({str(request) for request in requests}) == 3


def test_cache_folder_names_weights_data_and_precision(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", "/somewhere")
    path = cached_store_path(tiny(), images)
    assert path.parent == Path("/somewhere/stores") and path.name.startswith("custom-fashion-test-")
    assert path == cached_store_path(tiny(), images)
    others = [
        cached_store_path(tiny(seed=1), images),
        cached_store_path(tiny(), images, "float16"),
        cached_store_path(tiny(), open_data("fashion:test", limit=24)),
    ]
    assert len({path, *others}) == 4


def test_request_is_json_and_tells_weights_apart(images: ImageSet) -> None:
    first, same, other = (store_request(tiny(seed=seed), images) for seed in (0, 0, 1))
    assert first == same and first["weights"] != other["weights"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion:test", "fashion-test"),
        ("imagefolder:/data/my val", "imagefolder-my-val"),
        ("parquet:a/*.parquet", "parquet-.parquet"),
        ("../..", "unnamed"),
    ],
)
def test_slug_is_a_safe_file_name(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_names_from_which_something_is_left_out_stay_apart() -> None:
    for plain in ("ibq", "fashion:test", "imagefolder:images", "ch=64", "a b", "a" * 60):
        assert unique_slug(plain) == slug(plain)
    assert unique_slug(Path("images")) == "images"
    long = "a" * 60
    others = [f"imagefolder:/data/{one}/val" for one in ("a", "b")] + [f"{long}a", f"{long}b", "a/b", "a-b"]
    slugs = [unique_slug(name) for name in others]
    assert len({*slugs}) == len(slugs) and all(re.fullmatch(r"[\w.-]{1,69}", one) for one in slugs)
    assert re.fullmatch(r"imagefolder-val-[0-9a-f]{8}", slugs[0])
    ours, theirs = (unique_slug(Path(f"/data/{one}/val")) for one in ("a", "b"))
    assert re.fullmatch(r"val-[0-9a-f]{8}", ours) and ours != theirs


def test_default_batch_fits_the_image_size() -> None:
    assert default_batch_size(32, "cpu") == 128 and default_batch_size(256, "cpu") == 2
    assert default_batch_size(4096, "cpu") == 1 and default_batch_size(256, torch.device("cuda:0")) == 32


def test_unit_range_reaches_both_ends() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_refusals(images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch size must be at least 1, got 0"):
        encode_images(tiny(), images, tmp_path / "x", batch_size=0)
    with pytest.raises(UserError, match="dtype must be one of"):
        encode_images(tiny(), images, tmp_path / "x", dtype="int8")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        encode_images(tiny(), images, tmp_path / "file")
    with pytest.raises(UserError, match=r"unknown tokenizer 'ibk'.* Did you mean ibq"):
        open_tokenizer("ibk", "fashion:test")


def test_embedded_weights_on_photographs_are_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    open_tokenizer("vavae", "imagefolder:DIR")
    told = capsys.readouterr().err
    assert told == (
        "note: 'vavae' fashion32 was trained on Fashion-MNIST at 32x32 pixels, not on images like imagefolder:DIR; did you mean "
        "va-vae?\n"
    )
    open_tokenizer("ae", "parquet:x", release="fashion32")
    assert capsys.readouterr().err.endswith("not on images like parquet:x\n")
    open_tokenizer("vavae", "fashion:test")
    assert capsys.readouterr().err == ""


def test_latents_of_an_overridden_architecture_are_another_store(images: ImageSet) -> None:
    """The same file, another placement of attention: neither weights nor specification tell."""
    plain = load_tokenizer("kl")
    changed = load_tokenizer("kl", architecture={"resolution": 64})
    first, second = (store_request(tokenizer, images) for tokenizer in (plain, changed))
    assert plain.spec == changed.spec and first["weights"] == plain.spec.weights_sha256 != second["weights"]


def test_broken_weights_are_noticed_while_encoding(images: ImageSet, tmp_path: Path) -> None:
    tokenizer = tiny()
    with torch.no_grad():
        next(tokenizer.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="NaN or infinite"):
        encode_images(tokenizer, images, tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()


@dataclass(frozen=True)
class Together(Ranks):
    """Ranks that are threads. ``arrived`` is set when the first one waits for the other for the first time."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=30))
    arrived: threading.Event = field(default_factory=threading.Event)
    told: dict[str, object] = field(default_factory=dict)

    def wait(self) -> None:
        self.arrived.set()
        self.meeting.wait()

    def agreed(self, value: object) -> object:
        if self.first:
            self.told["value"] = value
        self.wait()
        value = self.told["value"]
        self.wait()
        return value


def test_ranks_decide_together_whether_there_is_anything_to_do(images: ImageSet, tmp_path: Path) -> None:
    """Rank 0 looks before another job has finished the store, and rank 1 after it."""
    shared, found = (threading.Barrier(2, timeout=30), threading.Event(), {}), []

    def encode(rank: int) -> None:
        found.append(encode_images(tiny(), images, tmp_path / "store", ranks=Together(rank, 2, *shared)))

    first = threading.Thread(target=encode, args=(0,))
    first.start()
    assert shared[1].wait(30)
    other = encode_images(tiny(), images, tmp_path / "store")
    encode(1)
    first.join()
    assert [store.fingerprint for store in found] == [other.fingerprint] * 2
