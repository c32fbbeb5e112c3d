"""``latentlab sample`` as a user meets it: defaults, files, two ranks, and one line for every mistake."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latentlab.tokenizers import build_tokenizer
from mind import Mind, export_released, save_mind, sized

from . import commands

TINY = {"hidden_size": 32, "num_heads": 2, "num_blocks": 1, "cond_dim": 16, "mapper_width": 32}
TOKENIZER = {"name": "ibq", "release": "fashion32"}


def tiny(path: Path, tokenizer: dict[str, str] | None = None, **fields: object) -> Path:
    """Weights that recommend four steps."""
    torch.manual_seed(0)
    model = Mind(sized("mind-fashion", **{**TINY, **fields}))
    header = {"sampler": json.dumps({"steps": 4, "soft_ratio": 0.25}), "tokenizer": json.dumps(tokenizer or TOKENIZER)}
    save_mind(path, model.state_dict(), model.config, header)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("a run") / "mind.safetensors")


sampled, refusal = (partial(run, "sample", "mind") for run in (commands.latentlab, commands.refusal))


def test_defaults_show_ten_classes(weights: Path, here: Path) -> None:
    result = sampled("--weights", weights)
    assert result.exit_code == 0, result.output
    out = here / "runs" / "sample-mind-a-run0"
    assert result.stdout.splitlines() == [
        f"grid      {out.relative_to(here) / 'grid.png'}",
        f"samples   {out.relative_to(here) / 'samples_40x32x32x3.npz'}",
        f"settings  {out.relative_to(here) / 'settings.json'}",
    ]
    assert "40 images in " in result.stderr
    with np.load(out / "samples_40x32x32x3.npz") as file:
        assert file["arr_0"].shape == (40, 32, 32, 3) and np.bincount(file["arr_1"]).tolist() == [4] * 10
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (4 * 66 + 2, 10 * 66 + 2)
    request = json.loads((out / "settings.json").read_text())["request"]
    assert request["sampler"]["steps"] == 4 and request["sampler"]["cfg_scale"] == 3.0


def test_options_reach_the_sampler(weights: Path, here: Path) -> None:
    options = ("--classes", "7,2", "--per-class", 3, "--seed", 5, "--set", "steps=3", "--set", "cfg_scale=1.5", "--png")
    result = sampled("--weights", weights.parent, *options, "--no-npz", "--out", here / "my out")
    assert result.exit_code == 0, result.output
    request = json.loads((here / "my out" / "settings.json").read_text())["request"]
    assert (request["sampler"]["steps"], request["sampler"]["cfg_scale"], request["sampler"]["soft_ratio"]) == (
        3,
        1.5,
        0.25,
    )
    assert (request["n"], request["classes"], request["seed"]) == (6, "7,2", 5)
    assert len(list((here / "my out" / "png").iterdir())) == 6 and not list((here / "my out").glob("*.npz"))
    assert "pictures" in result.stdout and "samples " not in result.stdout


def test_the_authors_container_needs_a_tokenizer(here: Path) -> None:
    torch.manual_seed(0)
    shape = {**TINY, "mapper_width": 0, "hidden_size": 64, "num_heads": 1, "rope": "1d"}
    model = Mind(sized("mind-fashion", **shape, vocab_size=32, tokens=256, grid=(16, 16)))
    export_released(model.to(torch.bfloat16), here / "theirs.pt")
    architecture = {
        "quantizer": "ibq",
        "n_embed": 32,
        "ch": 32,
        "ch_mult": (1, 1, 1),
        "num_res_blocks": 1,
        "z_channels": 4,
    }
    architecture |= {"resolution": 64, "attn_resolutions": ()}
    header = {"architecture": json.dumps(architecture), "name": "ibq", "release": "tiny"}
    save_file(build_tokenizer(architecture).state_dict(), here / "tokenizer.safetensors", metadata=header)
    assert "does not say which tokenizer" in refusal("--weights", "theirs.pt")
    assert "has 512 codes, the model a vocabulary of 32" in refusal("--weights", "theirs.pt", "--tokenizer", "ibq")
    options = ("--tokenizer", "ibq", "--tokenizer-weights", "tokenizer.safetensors", "--n", 2, "--set", "steps=3")
    result = sampled("--weights", "theirs.pt", *options, "--precision", "float32", "--out", "out")
    assert result.exit_code == 0, result.output
    assert (here / "out" / "samples_2x64x64x3.npz").exists()
    request = json.loads((here / "out" / "settings.json").read_text())["request"]
    assert request["precision"] == "float32" and request["sampler"]["soft_ratio"] == 0.1
    assert request["tokenizer"]["release"] == "tiny"


def test_two_ranks_make_the_same_file(weights: Path, here: Path) -> None:
    options = ["--weights", str(weights), "--images", "7", "--batch-size", "2"]
    assert sampled(*options, "--out", "one").exit_code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*launcher, "-m", "latentlab", "sample", "mind", *options, "--out", "two"],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("samples ") == 1 and done.stderr.count("7 images in ") == 1
    one, two = (here / name / "samples_7x32x32x3.npz" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", 0), "--n must be at least 1, got 0"),
        (("--per-class", 0), "--per-class must be at least 1"),
        (("--per-class", 2, "--n", 4), "leave out --n"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--classes", "3,10"), "class 10: the model has too few classes, only 0 to 9"),
        (("--classes", "shirt"), "--classes expects numbers"),
        (("--set", "topk=5"), "unknown sampler setting 'topk'. Did you mean top_k"),
        (("--set", "top_k"), "--set expects OPTION=VALUE"),
        (("--set", "top_k=-3"), "top_k: Input should be greater than 0"),
        (("--set", "top_k=[1"), "is not a YAML value"),
        (("--out", "a file"), "--out a file is a file"),
        (("--tokenizer", "kl"), "is continuous and has no tokens"),
        (("--tokenizer", "ibk"), "unknown tokenizer 'ibk'. Did you mean ibq"),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_mistakes(weights: Path, here: Path, options: tuple[object, ...], words: str) -> None:
    (here / "a file").write_text("")
    assert words in refusal("--weights", weights, *options)


def test_wrong_weights(here: Path) -> None:
    assert "unknown MIND weights 'fashion23'. Did you mean fashion32" in refusal("--weights", "fashion23")
    assert "none.safetensors does not exist" in refusal("--weights", "none.safetensors")
    assert "holds no mind.safetensors" in refusal("--weights", here)
    (here / "noise.pt").write_bytes(b"noise")
    assert "noise.pt" in refusal("--weights", "noise.pt")
    assert "has 512 codes, the model a vocabulary of 300" in refusal(
        "--weights", tiny(here / "v.safetensors", vocab_size=300)
    )
    other_grid = tiny(here / "l.safetensors", tokens=16, grid=(4, 4))
    assert "has 8x8 tokens per image, the model 16" in refusal("--weights", other_grid)
    other_weights = tiny(here / "w.safetensors", {**TOKENIZER, "weights_sha256": "0" * 64})
    assert "was trained on tokens of other weights of 'ibq'" in refusal("--weights", other_weights)
