"""The latent store: round trip, streaming, resume after a kill, foreign folders, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latentlab import ArrayLatents, LatentStore, TokenizerSpec, UserError, store_layout, store_writer
from latentlab.ranks import Ranks
from latentlab.store import StoreWriter, open_if_current

SPEC = TokenizerSpec("toy", "test", "vq", "grid", channels=4, downsampling=4, codebook_size=16)
REQUEST = {"tokenizer": "toy", "data": "noise"}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards of seven images, so that a few dozen images cross several of them."""
    monkeypatch.setattr(store_writer, "SHARD_IMAGES", 7)


def columns(n: int = 30) -> dict[str, object]:
    rng = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(n, 4, 3, 5, generator=rng) * 2 + 3,
        "labels": np.arange(n) % 3,
        "codes": torch.randint(16, (n, 3, 5), generator=rng),
        "masks": torch.rand(n, 6, 10, generator=rng) > 0.5,
    }


def first_missing(writer: StoreWriter) -> int:
    """Return the image at which a writer that is alone goes on."""
    return writer.missing(1000, unit=1)[0].start


def write(path: Path, data: dict[str, object], start: int = 0, stop: int | None = None, step: int = 4) -> StoreWriter:
    writer = StoreWriter(path, request=REQUEST, spec=SPEC, class_names=("a", "b", "c"))
    stop = len(data["labels"]) if stop is None else stop
    for i in range(max(start, first_missing(writer)), stop, step):
        part = slice(i, min(i + step, stop))
        writer.append(*(data[name][part] for name in ("latents", "labels", "codes", "masks")))
    return writer


def test_round_trip_across_shards(tmp_path: Path, small_shards: None) -> None:
    data = columns()
    store = write(tmp_path / "with spaces" / "store", data).finish()
    assert (store.n, store.shape, store.grid) == (30, (4, 3, 5), (3, 5))
    assert len(list(store.path.glob("latents_*"))) == 5
    assert store.spec == SPEC and store.class_names == ("a", "b", "c")
    chosen = np.array([29, 0, 6, 7, 8, 7])
    assert torch.equal(store.take(chosen), data["latents"][chosen])
    assert torch.equal(store.take(slice(5, 23)), data["latents"][5:23])
    assert torch.equal(store.take(slice(None, None, 4)), data["latents"][::4])
    assert torch.equal(store.take(store.labels == 1), data["latents"][1::3])
    assert torch.equal(store.codes(chosen), data["codes"][chosen])
    assert torch.equal(store.masks(chosen), data["masks"][chosen])
    assert torch.equal(torch.cat(list(store.batches(4))), data["latents"])
    assert np.array_equal(store.labels, data["labels"])


def test_reopened_store_is_the_same(tmp_path: Path, small_shards: None) -> None:
    first = write(tmp_path, columns()).finish()
    again = LatentStore(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert open_if_current(tmp_path, REQUEST) is not None
    assert open_if_current(tmp_path, {**REQUEST, "data": "other"}) is None


def test_moments_match_numpy_and_memory(tmp_path: Path, small_shards: None) -> None:
    data = columns()
    store = write(tmp_path, data).finish()
    values = data["latents"].double().numpy()
    expected_mean, expected_std = values.mean((0, 2, 3)), values.transpose(1, 0, 2, 3).reshape(4, -1).std(1, ddof=1)
    for latents in (store, ArrayLatents(data["latents"])):
        np.testing.assert_allclose(latents.moments.mean, expected_mean, rtol=1e-7)
        np.testing.assert_allclose(latents.moments.std, expected_std, rtol=1e-7)
    standardised = store.moments.standardise(store.take(slice(None)))
    np.testing.assert_allclose(standardised.mean((0, 2, 3)), 0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_stored_and_read_as_float32(tmp_path: Path, dtype: str) -> None:
    latents = torch.randn(5, 4, 2, 2)
    writer = StoreWriter(tmp_path, request=REQUEST, spec=SPEC, dtype=dtype)
    writer.append(latents)
    store = writer.finish()
    assert store.take(slice(None)).dtype == torch.float32
    assert torch.equal(store.take(slice(None)), latents.to(store_layout.DTYPES[dtype]).float())


def test_sequences_come_back_channel_first(tmp_path: Path) -> None:
    tokens = torch.randn(6, 9, 4)
    writer = StoreWriter(tmp_path, request=REQUEST, spec=SPEC)
    writer.append(tokens)
    store = writer.finish()
    assert store.shape == (4, 9) and store.grid is None
    assert torch.equal(store.take(slice(None)), tokens.transpose(1, 2))


def test_killed_writer_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 while the fourth shard is due: what is on disk is kept, the rest is written, the result is identical."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_store as t
        t.store_writer.SHARD_IMAGES = 7
        t.write(t.Path({str(tmp_path / "killed")!r}), t.columns(), stop=24)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="unfinished"):
        LatentStore(tmp_path / "killed")
    store_writer.SHARD_IMAGES, saved = 7, store_writer.SHARD_IMAGES
    try:
        continued = StoreWriter(tmp_path / "killed", request=REQUEST, spec=SPEC)
        assert first_missing(continued) == 21
        first = write(tmp_path / "killed", columns()).finish()
        second = write(tmp_path / "straight", columns()).finish()
    finally:
        store_writer.SHARD_IMAGES = saved
    assert first.fingerprint == second.fingerprint


def test_a_slow_writer_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = write(tmp_path / "quick", columns()).finish()
    monkeypatch.setattr(store_writer, "PATIENCE_SECONDS", 0.0)
    write(tmp_path / "slow", columns(), stop=24)  # and killed
    continued = StoreWriter(tmp_path / "slow", request=REQUEST, spec=SPEC)
    assert first_missing(continued) == 24
    slow = write(tmp_path / "slow", columns()).finish()
    assert torch.equal(slow.take(slice(None)), quick.take(slice(None))) and np.array_equal(slow.labels, quick.labels)
    assert slow.fingerprint == quick.fingerprint and len(slow.manifest.shards) > len(quick.manifest.shards)


def test_several_ranks_write_one_store_in_the_order_of_the_images(tmp_path: Path, small_shards: None) -> None:
    """Three writers in turns; the third was killed and a fourth, alone, does what is left: bit for bit the store of one."""
    data = columns(43)
    parts = []
    for rank in range(3):
        writer = StoreWriter(tmp_path / "many", request=REQUEST, spec=SPEC, ranks=OneOfMany(rank, 3))
        parts += (own := writer.missing(43, unit=4))
        for part in own if rank < 2 else [range(own[0].start, own[0].start + 8)]:
            writer.go_to(part.start)
            writer.append(*(data[name][part.start : part.stop] for name in ("latents", "labels", "codes", "masks")))
        if rank < 2:
            writer.flush()
    assert [i for part in parts for i in part] == list(range(43)) and all(part.start % 4 == 0 for part in parts)
    with pytest.raises(UserError, match="unfinished"):
        LatentStore(tmp_path / "many")
    last = StoreWriter(tmp_path / "many", request=REQUEST, spec=SPEC)
    left = last.missing(43, unit=4)
    assert left == [range(35, 43)]  # of the last rank's 8 images one shard of 7 was whole
    last.go_to(35)
    last.append(*(data[name][35:43] for name in ("latents", "labels", "codes", "masks")))
    store, whole = last.finish(), write(tmp_path / "one", data).finish()
    everything = np.random.default_rng(0).permutation(43)
    for read in (store.take, store.codes, store.masks):
        assert torch.equal(read(everything), getattr(whole, read.__name__)(everything))
    assert np.array_equal(store.labels, whole.labels)
    names = [entry.file for entry in store.manifest.shards]
    assert names == sorted(names) or names[-1].startswith("latents_rank00")
    assert {name[:14] for name in names} == {"latents_rank00", "latents_rank01", "latents_rank02"}
    assert not list(store.path.glob("store.partial*"))


class OneOfMany(Ranks):
    """A rank that need not wait: the test runs them one after the other. All of them find what the first one left."""

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("written", [[], [(0, 5)], [(3, 9), (9, 10), (20, 31)], [(30, 40)], [(0, 40)]])
def test_shares_are_a_partition_of_what_is_missing(written: list[tuple[int, int]], ranks: int) -> None:
    entries = [store_layout.Written(a, store_layout.ShardEntry("f", b - a, 0, 0, "")) for a, b in written]
    missing = store_layout.missing_ranges(40, entries)
    expected = sorted(set(range(40)) - {i for a, b in written for i in range(a, b)})
    assert [i for part in missing for i in part] == expected
    shares = [store_layout.share_of(missing, rank, ranks, 4) for rank in range(ranks)]
    assert [i for share in shares for part in share for i in part] == expected
    starts = {part.start for part in missing}
    assert all(part.start % 4 == 0 or part.start in starts for share in shares for part in share)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 8 or ranks == 1


def test_mirrored_latents_lie_beside_the_others(tmp_path: Path, small_shards: None) -> None:
    data = columns(20)
    writer = StoreWriter(tmp_path, request=REQUEST, spec=SPEC)
    other = {name: data[name].flip(0) for name in ("latents", "codes")}
    for part in (slice(0, 9), slice(9, 20)):
        own = (data[name][part] for name in ("latents", "labels", "codes", "masks"))
        writer.append(*own, flipped=other["latents"][part], flipped_codes=other["codes"][part])
    store = writer.finish()
    mirrored = store.mirrored()
    assert store.has_mirrored and torch.equal(store.take(slice(None)), data["latents"])
    assert torch.equal(mirrored.take(slice(3, 17)), other["latents"][3:17])
    assert torch.equal(mirrored.codes(slice(None)), other["codes"])
    assert torch.equal(mirrored.masks(slice(None)), data["masks"].flip(2))
    assert np.array_equal(mirrored.labels, store.labels) and mirrored.fingerprint != store.fingerprint
    values = other["latents"].double().numpy()
    np.testing.assert_allclose(mirrored.moments.mean, values.mean((0, 2, 3)), rtol=1e-7)


def test_lightningdit_reads_a_store_with_masks(tmp_path: Path, small_shards: None) -> None:
    """Its data set opens every safetensors file of the folder and takes the labels, and either side of the latents, of each."""
    data = columns(20)
    writer = StoreWriter(tmp_path, request=REQUEST, spec=SPEC)
    own = (data[name] for name in ("latents", "labels", "codes", "masks"))
    writer.append(*own, flipped=data["latents"].flip(3))
    store = writer.finish()
    labels, sides = [], {"latents": [], "latents_flip": []}
    for file in sorted(glob(str(tmp_path / "*.safetensors"))):
        with safe_open(file, framework="pt") as shard:
            labels.append(shard.get_slice("labels")[:])
            for name, parts in sides.items():
                parts.append(shard.get_slice(name)[:])
    assert np.array_equal(torch.cat(labels), data["labels"])
    assert torch.equal(torch.cat(sides["latents"]), data["latents"])
    assert torch.equal(torch.cat(sides["latents_flip"]), data["latents"].flip(3))
    assert torch.equal(store.masks(slice(None)), data["masks"])


def test_masks_where_earlier_versions_put_them_are_read_and_cleared(tmp_path: Path, small_shards: None) -> None:
    data = columns(20)
    write(tmp_path, data).finish()
    for file in (tmp_path / "masks").iterdir():
        file.rename(tmp_path / file.name)
    assert torch.equal(LatentStore(tmp_path).masks(slice(None)), data["masks"])
    StoreWriter(tmp_path, request={**REQUEST, "data": "other"}, spec=SPEC)
    assert not [*tmp_path.glob("*.safetensors"), *tmp_path.glob("masks/*")]


def test_notes_that_cannot_be_read_are_as_good_as_none(tmp_path: Path, small_shards: None) -> None:
    write(tmp_path, columns())
    (tmp_path / "store.partial.rank00.json").write_text('{"request": {}, "shards": []}')  # of an earlier version
    assert first_missing(StoreWriter(tmp_path, request=REQUEST, spec=SPEC)) == 0


def test_another_request_starts_from_nothing(tmp_path: Path, small_shards: None) -> None:
    write(tmp_path, columns())
    assert first_missing(StoreWriter(tmp_path, request={"tokenizer": "other"}, spec=SPEC)) == 0
    assert not list(tmp_path.glob("*.safetensors"))


def test_lightningdit_folder_is_read_as_it_is(tmp_path: Path) -> None:
    latents = torch.randn(11, 4, 2, 2)
    for shard, part in enumerate((slice(0, 6), slice(6, 11))):
        tensors = {"latents": latents[part], "latents_flip": latents[part].flip(3), "labels": torch.arange(11)[part]}
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, tmp_path / f"latents_rank00_shard{shard:03d}.safetensors"
        )
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, tmp_path / "latents_stats.pt")
    store = LatentStore(tmp_path)
    assert store.n == 11 and store.spec is None and not store.has_codes
    assert torch.equal(store.take(slice(None)), latents)
    assert torch.equal(store.mirrored().take(slice(None)), latents.flip(3))
    before = store.fingerprint
    os.utime(tmp_path / "latents_rank00_shard000.safetensors", (0, 0))
    assert LatentStore(tmp_path).fingerprint != before


def test_a_folder_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(2, 1, 2, 2)}, tmp_path / "latents_rank00_shard000.safetensors")
    with pytest.raises(UserError, match="did not write"):
        StoreWriter(tmp_path, request=REQUEST, spec=SPEC)


def test_mirrored_latents_that_are_not_there(tmp_path: Path) -> None:
    store = write(tmp_path / "ours", columns()).finish()
    with pytest.raises(UserError, match="holds no latents of mirrored images: encode with --flip"):
        store.mirrored()
    odd = {"latents": torch.zeros(2, 1, 2, 2), "latents_flip": torch.zeros(3, 1, 2, 2)}
    (tmp_path / "theirs").mkdir()
    save_file(odd, tmp_path / "theirs" / "latents_rank00_shard000.safetensors")
    assert not LatentStore(tmp_path / "theirs").has_mirrored


def test_non_finite_latents_are_named(tmp_path: Path) -> None:
    data = columns()
    data["latents"][17, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="image 17 is NaN"):
        write(tmp_path / "a", data)
    with pytest.raises(UserError, match=r"1 of 30 latents contain NaN or infinity \(first: image 17\)"):
        _ = ArrayLatents(data["latents"]).moments
    writer = StoreWriter(tmp_path / "b", request=REQUEST, spec=SPEC, dtype="float16")
    with pytest.raises(UserError, match="infinite in float16"):
        writer.append(torch.full((1, 4, 2, 2), 1e6))


def test_damage_is_noticed(tmp_path: Path, small_shards: None) -> None:
    write(tmp_path / "a", columns()).finish()
    shard = tmp_path / "a" / "latents_rank00_shard002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="encode again"):
        LatentStore(tmp_path / "a")
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        LatentStore(tmp_path / "a")
    manifest = tmp_path / "a" / "store.json"
    manifest.write_text(json.dumps({"format_version": 1}))
    with pytest.raises(UserError, match="request"):
        LatentStore(tmp_path / "a")


def test_a_changed_shard_is_noticed_and_a_copied_one_is_not_refused(tmp_path: Path, small_shards: None) -> None:
    write(tmp_path, columns()).finish()
    shard = tmp_path / "latents_rank00_shard001.safetensors"
    os.utime(shard, (0, 0))
    assert LatentStore(tmp_path).n == 30
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="was changed after it was written"):
        LatentStore(tmp_path)
    assert open_if_current(tmp_path, REQUEST) is None


def test_labels_that_are_not_integers_are_refused(tmp_path: Path) -> None:
    tensors = {"latents": torch.zeros(2, 1, 2, 2), "labels": torch.tensor([0.5, 1.0]), "other": torch.zeros(2).bool()}
    save_file(tensors, tmp_path / "latents_rank00_shard000.safetensors")
    with pytest.raises(UserError, match="labels must be integers"):
        LatentStore(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (10**9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{x",
        (66).to_bytes(8, "little") + b'{"latents":{"dtype":"F32","shape":[9,9,9,9],"data_offsets":[0,4]}}' + b"0000",
        (66).to_bytes(8, "little") + b'{"latents":{"dtype":"F32","shape":[1,1,1,1],"data_offset":"[0,4]}}' + b"0000",
    ],
)
def test_files_that_are_not_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latents_rank00_shard000.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        LatentStore(tmp_path)


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(2, 1, 2, 2)}, tmp_path / "latents_rank00_shard000.safetensors")
    save_file({"latents": torch.zeros(2, 3, 2, 2)}, tmp_path / "latents_rank00_shard001.safetensors")
    with pytest.raises(UserError, match="must agree"):
        LatentStore(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        LatentStore(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no latents_rank"):
        LatentStore(tmp_path / "empty")


def test_streaming_needs_the_memory_of_a_batch(tmp_path: Path) -> None:
    """Reading 256 MB of latents must not leave more than a small part of it resident."""
    save_file({"latents": torch.zeros(4096, 16, 32, 32)}, tmp_path / "latents_rank00_shard000.safetensors")
    script = textwrap.dedent(f"""
        import resource, sys
        from latentlab import LatentStore
        import torch
        torch.zeros(1 << 20).sum()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store = LatentStore({str(tmp_path)!r})
        total = sum(float(batch.sum()) for batch in store.batches())
        store.take(torch.randperm(store.n).numpy()[:500])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    grown = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert grown < 150 << 10, f"{grown >> 10} MiB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": np.zeros(3)}, r"\[n,c,h,w\], \[n,l,c\] or \[n,c\], got shape \[3\]"),
        ({"latents": np.zeros((3, 2, 2, 2), dtype=int)}, "floating point"),
        ({"latents": np.zeros((0, 2, 2, 2))}, "empty"),
        ({"latents": np.zeros((3, 2, 2, 2)), "labels": [1, 2]}, "got 2 for 3 latents"),
        ({"latents": np.zeros((3, 2, 2, 2)), "labels": [0.5, 1, 2]}, "integers"),
        ({"latents": np.zeros((3, 2, 2, 2)), "masks": np.zeros((3, 2))}, r"masks must be \[n,H,W\]"),
        ({"latents": "nonsense"}, "cannot be read as an array"),
    ],
)
def test_arrays_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ArrayLatents(**arguments)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int16", "float32"])
def test_masks_of_any_numbers(dtype: str) -> None:
    latents, masks = np.zeros((3, 2, 2, 2)), np.zeros((3, 4, 4), dtype)
    masks[:, 1:3] = 255
    assert torch.equal(ArrayLatents(latents, masks=masks).masks(slice(1, 3)), torch.from_numpy(masks[1:3] > 0))
    if dtype != "uint8":
        masks[2, 0, 0] = 1000
        with pytest.raises(UserError, match=r"masks hold values up to 1000: class numbers\?"):
            ArrayLatents(latents, masks=masks)


def test_float64_arrays_stay_float64_and_are_not_copied() -> None:
    values = np.random.default_rng(0).normal(size=(5, 2, 3, 3))
    batch = ArrayLatents(values).take(slice(None))
    assert batch.dtype == torch.float64
    assert batch.data_ptr() == values.ctypes.data
