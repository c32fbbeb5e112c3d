"""`latentlab encode`: what it writes, and what it does not overwrite."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentlab import LatentStore
from latentlab.tokenizers import build_tokenizer
from latentlab.tokenizers.zoo import releases_of

from .commands import latentlab, refusal


def test_encode_writes_a_store_that_analyze_reads(weights: Path) -> None:
    result = latentlab(
        "encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 40, "--out", "my store", "--dtype", "float16"
    )
    assert result.exit_code == 0 and result.stdout == "latents  40 of 4 x 8 x 8 in my store\n", result.output
    store = LatentStore("my store")
    assert store.n == 40 and store.spec.name == "ibq" and store.spec.release == "tiny" and store.has_codes
    assert np.bincount(store.labels).tolist() == [4] * 10
    analysed = latentlab("analyze", "--latents", "my store", "--metrics", "sec", "--json")
    assert json.loads(analysed.stdout)["tokenizer"]["codebook_size"] == 32
    named = latentlab("analyze", "--latents", "my store", "--metrics", "sec", "--limit", 20, "--json")
    assert json.loads(named.stdout)["latents"]["n"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--out", "file"], "--out file is a file"),
        (["--data", "cifar10"], "the data source 'cifar10' needs a folder: write cifar10:DIR"),
        (["--image-size", "64"], "fashion images are 32x32"),
    ],
)
def test_bad_arguments_of_encode(arguments: list[str], message: str, weights: Path) -> None:
    Path("file").touch()
    assert message in refusal("encode", "--tokenizer", "ibq", "--weights", weights, "--out", "out", *arguments)
    assert not Path("out").exists()


def test_finished_latents_of_another_request_are_not_overwritten(weights: Path) -> None:
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 10, "--out", "store")
    assert latentlab(*command).stdout == "latents  10 of 4 x 8 x 8 in store\n"
    shard = next(Path("store").glob("*.safetensors"))
    written = shard.stat().st_mtime_ns
    again = "reused   10 of 4 x 8 x 8 in store: finished before, and nothing has changed since\n"
    assert latentlab(*command).stdout == again and shard.stat().st_mtime_ns == written
    line = refusal(*command, "--dtype", "float16")
    assert "store holds finished latents of another request (dtype is float32 there, float16 here)" in line
    assert LatentStore("store").n == 10


def test_unfinished_latents_of_another_request_are_not_overwritten(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentlab import encoding, store_writer

    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 40, "--batch-size", 4, "--out", "store")
    columns = encoding.BatchEncoder.columns

    def interrupted(self: encoding.BatchEncoder, pixels: torch.Tensor, first: int) -> object:
        if first >= 32:
            raise KeyboardInterrupt
        return columns(self, pixels, first)

    monkeypatch.setattr(store_writer, "SHARD_IMAGES", 8)
    with monkeypatch.context() as stopping:
        stopping.setattr(encoding.BatchEncoder, "columns", interrupted)
        assert latentlab(*command).exit_code == 130
    kept = {shard: shard.stat().st_ino for shard in Path("store").glob("latents*")}
    assert kept
    line = refusal(*command, "--dtype", "float16")
    assert "store holds unfinished latents of another request (dtype is float32 there, float16 here)" in line
    assert latentlab(*command).stdout == "latents  40 of 4 x 8 x 8 in store\n"
    assert {shard: shard.stat().st_ino for shard in kept} == kept


def test_latents_of_a_newer_version_are_not_overwritten(weights: Path) -> None:
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 10, "--out", "store")
    assert latentlab(*command).exit_code == 0
    Path("store/store.json").write_text('{"format_version": 2, "parts": []}')
    shards = {shard: shard.read_bytes() for shard in Path("store").glob("latents*")}
    line = refusal(*command)
    assert "store has store format 2, this latentlab reads 1" in line and "choose another --out" in line
    assert shards and {shard: shard.read_bytes() for shard in shards} == shards


def test_masks_are_named_as_what_differs(weights: Path) -> None:
    from PIL import Image

    for folder in ("images/a", "masks/a"):
        Path(folder).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 255, np.uint8)).convert("RGB").save(f"{folder}/0.png")
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--data", "imagefolder:images", "--image-size", 32)
    assert latentlab(*command, "--out", "store").exit_code == 0
    line = refusal(*command, "--out", "store", "--masks", "binary:masks")
    assert "another request (without --masks there, with here)" in line


def test_fields_of_the_architecture_are_given_on_the_command_line(tmp_path: Path) -> None:
    fields = {**(releases_of("mar-kl16")[0].architecture or {}), "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
    save_file(build_tokenizer(fields).state_dict(), tmp_path / "mine.safetensors")
    command = ("--tokenizer", "mar-kl16", "--weights", "mine.safetensors", "--limit", 4)
    options = ("--architecture", "ch=32", "--architecture", "ch_mult=[1, 1]", "--architecture", "num_res_blocks=1")
    assert "the fields of architecture that differ (--architecture FIELD=VALUE)" in refusal(
        "encode", *command, "--out", "a"
    )
    encoded = latentlab("encode", *command, *options, "--out", "a")
    assert encoded.exit_code == 0 and "4 of 16 x 16 x 16 in a" in encoded.stdout, encoded.output
    analysed = latentlab("analyze", *command, *options, "--metrics", "sec", "--out", "b", "--json")
    assert json.loads(analysed.stdout)["latents"]["shape"] == [16, 16, 16], analysed.output
    assert "--architecture expects FIELD=VALUE, got 'ch'" in refusal(
        "encode", *command, "--architecture", "ch", "--out", "c"
    )
    assert "--architecture goes with --tokenizer" in refusal("analyze", "--latents", "a", *options)


def test_weights_of_a_tokenizer_that_has_no_published_ones_name_the_one_that_has(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "mine.safetensors")
    line = refusal("encode", "--tokenizer", "vavae", "--weights", "mine.safetensors", "--out", "a")
    assert "'vavae' has no published one: did you mean va-vae?" in line


def test_encode_says_as_json_what_is_there_and_whether_it_was_there_before(weights: Path) -> None:
    command = (
        "encode",
        "--tokenizer",
        "ibq",
        "--weights",
        weights,
        "--limit",
        10,
        "--out",
        "store",
        "--flip",
        "--json",
    )
    first, second = (json.loads(latentlab(*command).stdout) for _ in range(2))
    assert (first.pop("reused"), second.pop("reused")) == (False, True) and first == second
    assert first.pop("tokenizer")["release"] == "tiny"
    assert first == {"path": "store", "n": 10, "shape": [4, 8, 8], "mirrored": True, "skipped_images": []}


def test_foreign_latents_are_not_overwritten(weights: Path, features: Path) -> None:
    line = refusal("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 5, "--out", features)
    assert "holds latents that latentlab did not write" in line
    assert LatentStore(features).n == 60


def test_corrupt_images_are_refused_or_skipped_and_counted(weights: Path) -> None:
    from PIL import Image

    Path("images/a b").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(f"images/a b/{i}.png")
    Path("images/a b/broken.png").write_bytes(b"\x89PNG nonsense")
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--data", "imagefolder:images", "--image-size", 32)
    assert "broken.png" in refusal(*command, "--out", "out")
    result = latentlab(*command, "--out", "out", "--skip-bad")
    assert result.exit_code == 0 and "skipped  1 unreadable images" in result.stdout and "broken.png" in result.stdout
    assert LatentStore("out").n == 3
    unknown = latentlab(*command, "--out", "out", "--skip-bad", "--dtype", "int8")
    assert unknown.exit_code == 2 and "'float32', 'float16', 'bfloat16'" in unknown.stderr
