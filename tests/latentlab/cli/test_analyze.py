"""`latentlab analyze`, and what it shares with `compare`: values, refusals, default folders."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentlab import LatentStore, registry
from latentlab.cli.options import as_seen_here, particulars

from .commands import latentlab, refusal


def test_analysis_of_a_tokenizer(weights: Path, home: Path) -> None:
    command = ("analyze", "--tokenizer", "ibq", "--weights", weights, "--limit", 200, "--metrics", "viv,lnc")
    first = latentlab(*command)
    assert first.exit_code == 0, first.output
    (out,) = Path("runs").glob("analyze-ibq-fashion-test-200-tiny.safetensors-????????")  # which of that name
    for place in ("results.json", "summary.md"):
        assert f"{out / place}" in first.stdout and (out / place).is_file()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", first.output)
    results = json.loads((out / "results.json").read_text())
    assert [m["name"] for m in results["measurements"]] == ["viv", "lnc"]
    assert results["data"]["n"] == 200 and len(results["tokenizer"]["weights_sha256"]) == 64
    assert results["command"] == shlex.join(["latentlab", *sys.argv[1:]])
    assert {Path(f).suffix for f in results["figures"]} == {".png", ".svg"}
    store = LatentStore(results["latents"]["path"])
    assert store.path.parent == home / "stores" and store.has_codes and store.has_masks
    before = {file: file.stat().st_mtime_ns for file in store.path.iterdir()}
    again = latentlab(*command)
    assert "reused, as nothing has changed since the last run: viv, lnc" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in store.path.iterdir()} == before


def test_json_is_all_there_is_on_stdout(features: Path) -> None:
    result = latentlab(
        "analyze", "--latents", features, "--metrics", "viv,sec", "--json", "--out", "my results", "--seed", 3
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown == json.loads(Path("my results/results.json").read_text())
    assert shown["tokenizer"] is None and shown["data"] is None and shown["seed"] == 3
    assert shown["latents"]["n"] == 60 and shown["latents"]["shape"] == [4, 4, 4]
    assert "my results/results.json" in result.stderr


def test_without_figures(features: Path) -> None:
    result = latentlab("analyze", "--latents", features, "--metrics", "sec", "--no-figures", "--out", "plain")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("plain/results.json").read_text())["figures"] == []
    assert not Path("plain/figures").exists() and Path("plain/summary.md").is_file()


def test_python_gives_the_same_numbers(features: Path) -> None:
    shown = json.loads(latentlab("analyze", "--latents", features, "--metrics", "viv,lnc,sec", "--json").stdout)
    for entry in shown["measurements"]:
        assert registry.measure(entry["name"], store=LatentStore(features)).value == entry["value"]


def test_default_measurements_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "no labels"
    folder.mkdir()
    save_file({"latents": torch.randn(40, 6, 4)}, folder / "latents_rank00_shard000.safetensors")  # [n,l,c]
    result = latentlab("analyze", "--latents", folder, "--metrics", "all")
    assert result.exit_code == 0, result.output
    assert "lnc: not measured: 'lnc' needs labels, and these latents have none\n" in result.stdout
    assert "sec: not measured: 'sec' needs grid" in result.stdout
    refused = json.loads(Path("runs/analyze-no-labels/results.json").read_text())["refused"]
    assert {"viv", "lnc", "linear_probe", "sec"} <= set(refused) and "gmm" not in refused


def test_named_measurement_that_does_not_fit_is_an_error_after_the_others(tmp_path: Path, features: Path) -> None:
    tensors = {"latents": torch.randn(40, 4, 4, 4)}
    save_file(tensors, features / "latents_rank00_shard000.safetensors")
    result = latentlab("analyze", "--latents", features, "--metrics", "lnc,sec")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "error: 1 of 2 measurements were not made; lnc: 'lnc' needs labels, and these latents have none\n"
    )
    assert [
        m["name"] for m in json.loads(Path("runs/analyze-their-features/results.json").read_text())["measurements"]
    ] == ["sec"]


def test_nan_latents_are_counted_and_named(features: Path) -> None:
    latents = torch.zeros(20, 4, 4, 4)
    latents[7, 0, 0, 0] = torch.inf
    save_file({"latents": latents}, features / "latents_rank00_shard000.safetensors")
    assert "1 of 20 latents contain NaN or infinity (first: image 7)" in refusal("analyze", "--latents", features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --tokenizer NAME (see `latentlab tokenizers`) or --latents DIR"),
        (["--tokenizer", "ibq", "--latents", "x"], "give either --tokenizer or --latents, not both"),
        (["--latents", "x", "--data", "fashion"], "--data goes with --tokenizer"),
        (["--latents", "x", "--skip-bad"], "--skip-bad goes with --tokenizer"),
        (["--latents", "missing dir"], "missing dir is not a folder"),
        (["--latents", "empty"], "empty has no latents_rank*_shard*.safetensors files"),
        (["--latents", "x", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--tokenizer", "ibq", "--limit", "-3"], "--limit must be at least 1, got -3"),
        (["--tokenizer", "ibq", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--tokenizer", "ibq", "--seed", str(2**32)], "--seed must be below 2^32, got 4294967296"),
        (["--tokenizer", "ibq", "--out", "file"], "--out file is a file"),
        (["--tokenizer", "ibq", "--out", "file/below"], "cannot write file/below"),
        (["--tokenizer", "ibq", "--device", "gpu"], "unknown device 'gpu'. Available: auto, cpu"),
        (["--tokenizer", "ibq", "--device", "cuda:99"], "this machine has no device 'cuda:99'. Available: auto, cpu"),
        (["--tokenizer", "ibq", "--metrics", "vib"], "unknown measurement 'vib'. Did you mean viv? Available: "),
        (["--tokenizer", "ibq", "--metrics", ","], "no measurement is named. Available: "),
        (["--tokenizer", "ibq", "--metrics", "lnc", "--set", "lnc.kk=3"], "unknown parameter of 'lnc' 'kk'. Did you mean k?"),
        (["--tokenizer", "ibq", "--set", "lnc.k=many"], "parameter 'k' of 'lnc': "),
        (["--tokenizer", "ibq", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--latents", "x", "--batch-size", "8"], "--batch-size goes with --tokenizer"),
        (["--tokenizer", "ibk"], "unknown tokenizer 'ibk'. Did you mean ibq"),
        (["--tokenizer", "TAEF2"], "unknown tokenizer 'TAEF2'. Did you mean taef2"),
        (["--tokenizer", "VAVAE"], "unknown tokenizer 'VAVAE'. Did you mean vavae or va-vae or ae?"),
        (["--tokenizer", "ibq", "--data", "ImageFolder:x"], "unknown data source 'ImageFolder'. Did you mean imagefolder?"),
        (["--tokenizer", "ibq", "--data", "FASHION:test"], "unknown data source 'FASHION'. Did you mean fashion?"),
        (["--tokenizer", "ibq", "--release", "fashion23"], "unknown release of tokenizer 'ibq' 'fashion23'. Did you mean"),
        (["--tokenizer", "ibq", "--data", "fashoin"], "unknown data source 'fashoin'. Did you mean fashion? Available: "),
        (["--tokenizer", "ibq", "--data", "fashion:tset"], "unknown split of fashion 'tset'. Did you mean test? Available: "),
        (["--tokenizer", "ibq", "--data", "imagefolder:no such"], "no such does not exist"),
        (["--tokenizer", "ibq", "--data", "empty"], "empty is a folder: write imagefolder:empty"),
        (["--tokenizer", "ibq", "--weights", "no.pt"], "no.pt"),
    ],
)  # fmt: skip
def test_bad_arguments_of_analyze(arguments: list[str], message: str, weights: Path) -> None:
    Path("file").touch()
    Path("empty").mkdir()
    if "ibq" in arguments and not {"--weights", "--release"} & set(arguments):
        arguments = [*arguments, "--weights", str(weights)]
    assert message in refusal("analyze", *arguments)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizers", "ae,kl", "--metrics", "lnc", "--set", "lnc.kk=3"], "unknown parameter of 'lnc' 'kk'"),
        (["--tokenizers", "ae,kl", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--latents", "x,y", "--batch-size", "8"], "--batch-size goes with --tokenizers"),
        (["--tokenizers", "ae,kl="], "--tokenizers kl=: name the weights after '='"),
        (["--tokenizers", "ae,kl=no.safetensors"], "no.safetensors"),
    ],
)
def test_bad_arguments_of_compare(arguments: list[str], message: str, home: Path) -> None:
    assert message in refusal("compare", *arguments)
    assert not Path("runs").exists() and not home.exists()


def test_a_comparison_of_weights_of_ones_own(weights: Path, home: Path) -> None:
    command = ("compare", "--limit", 60, "--metrics", "rmsc", "--json")
    once = latentlab(*command, "--tokenizers", f"ae,ibq={weights}")
    assert once.exit_code == 0, once.output
    assert set(json.loads(once.stdout)["names"]) == {"ae", "ibq"}
    twice = latentlab(*command, "--tokenizers", f"ibq,ibq={weights}")
    assert set(json.loads(twice.stdout)["names"]) == {"ibq", f"ibq={weights}"}


def test_default_folders_of_plain_cases_are_named_plainly(tmp_path: Path) -> None:
    assert particulars("ibq", "fashion:test", 4000, None, "ch=64") == ["ibq", "fashion-test", "4000", "ch-64"]
    assert particulars(as_seen_here(tmp_path / "latents"), masks=None, image_size=64, seed=2) == [
        "latents",
        "64px",
        "seed2",
    ]
    one, other = (particulars(as_seen_here(Path(folder) / "run"))[0] for folder in ("a", "../a"))
    assert one != other and {one[:4], other[:4]} == {"run-"}
    assert as_seen_here(Path("a/../run")) == Path("run") and as_seen_here(Path()) == tmp_path


def test_default_folders_differ_where_anything_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other images of folders with one name, other sizes, other seeds; and latents in such folders."""
    from PIL import Image

    monkeypatch.setattr("latentlab.analyze.draw_figures", lambda *_, **__: ([], []))
    rng = np.random.default_rng(0)
    for folder in ("a/val", "b/val"):
        Path(folder).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(f"{folder}/{number}.png")
    images = ("analyze", "--tokenizer", "ae", "--metrics", "latent_statistics", "--image-size", 32, "--data")
    commands = [
        (*images, "imagefolder:a/val"),
        (*images, "imagefolder:b/val"),
        (*images[:-2], 16, "--data", "imagefolder:b/val"),
        (*images, "imagefolder:b/val", "--seed", 3),
    ]
    for folder in ("a", "b"):
        encode = ("encode", "--tokenizer", "ae", "--data", f"imagefolder:{folder}/val", "--image-size", 32)
        assert latentlab(*encode, "--out", f"{folder}/latents").exit_code == 0
        commands.append(("analyze", "--latents", f"{folder}/latents", "--metrics", "latent_statistics"))
    told = [re.findall(r"^results  (.*)$", latentlab(*command).stdout, re.MULTILINE) for command in commands]
    assert len({name for (name,) in told}) == len(commands)
    assert told[3][0].endswith("-32px-seed3/results.json")


def test_batches_are_as_large_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlab import encoding

    sizes: set[int] = set()
    encode = encoding.encode_batch

    def counted(tokenizer: torch.nn.Module, images: torch.Tensor, *more: object) -> object:
        sizes.add(len(images))
        return encode(tokenizer, images, *more)

    monkeypatch.setattr("latentlab.encoding.encode_batch", counted)
    monkeypatch.setattr("latentlab.codec.encode_batch", counted)
    options = ("--limit", 10, "--batch-size", 4, "--metrics", "equivariance", "--device", "cpu")
    assert latentlab("analyze", "--tokenizer", "ae", *options).exit_code == 0
    assert max(sizes) == 4


def test_weights_that_are_not_here(home: Path) -> None:
    Path("images/class").mkdir(parents=True)
    line = refusal("analyze", "--tokenizer", "mar-kl16", "--data", "imagefolder:images")
    assert "kl16.safetensors" in line and "huggingface.co/jadechoghari/mar" in line and str(home / "weights") in line


def test_latents_are_kept_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("analyze", "--tokenizer", "ibq", "--limit", 30, "--metrics", "sec")  # the embedded weights

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("latentlab.analyze.measure_all", interrupt)
        result = latentlab(*command)
        assert result.exit_code == 130 and "continues where it stopped" in result.stderr
    monkeypatch.setattr("latentlab.encoding.encode_batch", interrupt)  # must not be needed again
    assert latentlab(*command).exit_code == 0
