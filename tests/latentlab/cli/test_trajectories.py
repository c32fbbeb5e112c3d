"""``latentlab trajectories`` as a user meets it: the table, the files, JSON, and one line for every mistake."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlab.data import open_data
from latentlab.encoding import encode_images
from latentlab.tokenizers import load_tokenizer
from latentlab.weights import read_metadata
from mind import Mind, save_mind, sized
from mind.baselines import sized as transformer_sized
from mind.baselines.latents import Affine
from mind.baselines.transformer import LatentTransformer
from mind.baselines.weight_files import save_baseline
from mind.weight_files import TokenizerRecord

from . import commands

TINY = {"hidden_size": 32, "num_heads": 2, "num_blocks": 1, "cond_dim": 16, "mapper_width": 32}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that recommend what makes good images, which is random."""
    torch.manual_seed(0)
    model = Mind(sized("mind-fashion", **TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    recommended = {"steps": 250, "cfg_scale": 3.0, "eta": 0.9, "strategy": "nucleus", "soft_ratio": 0.25}
    path = tmp_path_factory.mktemp("run") / "mind.safetensors"
    tokenizer = {"name": "ibq", "release": "fashion32"}
    save_mind(
        path,
        model.state_dict(),
        model.config,
        {"sampler": json.dumps(recommended), "tokenizer": json.dumps(tokenizer)},
    )
    return path


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small SiT that recommend guidance and noise on the way."""
    torch.manual_seed(0)
    shape = {"width": 16, "depth": 1, "heads": 2, "num_classes": 10, "in_channels": 8, "patch": 4}
    network = LatentTransformer(transformer_sized("sit-s", **shape, input=(8, 8)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    path = tmp_path_factory.mktemp("run") / "sit.safetensors"
    header = {"sampler": json.dumps({"cfg_scale": 1.5, "solver": "sde"})}
    record = TokenizerRecord(name="kl", release="fashion32")
    save_baseline(path, network, "sit", Affine((0.0,) * 8, (1.0,) * 8), record, torch.float32, header)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "ibq"
    encode_images(load_tokenizer("ibq", release="fashion32"), open_data("fashion:test", limit=160), path)
    return path


called, refusal = (partial(run, "trajectories") for run in (commands.latentlab, commands.refusal))


def test_table_files_and_the_settings_of_an_ode(weights: Path, here: Path) -> None:
    result = called("--weights", weights, "--n", 4, "--set", "steps=6")
    assert result.exit_code == 0, result.output
    name = weights.parent.name  # of the training run
    out = Path("runs") / f"trajectories-mind-{name}-4-steps-6"
    assert f"Sampling paths of MIND {name}: 4 paths of 6 steps, seed 0" in result.stdout
    assert "straightness" in result.stdout and "efficiency" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        f"results  {out / 'results.json'}",
        f"summary  {out / 'summary.md'}",
        f"figures  {out / 'figures'} (2 files)",
    ]
    results = json.loads((here / out / "results.json").read_text())
    sampler = results["generator"]["sampler"]
    quiet = ("steps", "cfg_scale", "eta", "eta_mode", "soft_ratio", "soft_stage")
    assert [sampler[name] for name in quiet] == [6, 1.0, 1.0, "keep", 1.0, "sphere_mean"]
    times = results["flow_times"]  # signal sqrt(t), noise 0.6 sqrt(1-t) at t = i/6
    assert times == pytest.approx(
        [(i / 6) ** 0.5 / ((i / 6) ** 0.5 + 0.6 * (1 - i / 6) ** 0.5) for i in range(7)], rel=1e-6
    )
    assert results["latents"] is None


def test_store_and_json(weights: Path, store: Path, here: Path) -> None:
    options = ("--weights", weights.parent, "--n", 5, "--set", "steps=4", "--set", "cfg_scale=2", "--out", "out")
    result = called(*options, "--store", store, "--seed", 3, "--batch-size", 2, "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    straight, viv = results["measurements"]
    assert (straight["name"], straight["n"], viv["name"], viv["n"]) == ("straightness", 5, "viv", 160)
    assert results["generator"]["sampler"]["cfg_scale"] == 2 and results["seed"] == 3
    assert results["latents"]["shape"] == [16, 64] and results["latents"]["path"] == str(store)
    assert viv["details"]["t"] == straight["details"]["t"] and "raw" in viv["variant"]
    assert straight["details"]["irreducible_variance"] == viv["details"]["curve"]
    assert "correlation with irreducible variance" in straight["companions"]
    assert json.loads((here / "out" / "results.json").read_text()) == results
    assert "figures  out/figures (2 files)" in result.stderr
    once_more = called(*options, "--store", store, "--seed", 3, "--batch-size", 5, "--json")
    assert json.loads(once_more.stdout)["measurements"][0]["value"] == pytest.approx(straight["value"], rel=1e-6)


def test_images_are_encoded_by_the_models_tokenizer(weights: Path, store: Path) -> None:
    options = ("--weights", weights, "--n", 3, "--set", "steps=2", "--json")
    encoded = called(*options, "--data", "fashion:test", "--limit", 160, "--out", "a")
    given = called(*options, "--store", store, "--out", "b")
    assert encoded.exit_code == given.exit_code == 0, encoded.output
    curves = [json.loads(one.stdout)["measurements"][1]["details"]["curve"] for one in (encoded, given)]
    assert curves[0] == curves[1]


def test_a_flow_beside_an_earlier_run(weights: Path, flow: Path, here: Path) -> None:
    options = ("--n", 4, "--set", "steps=5")
    assert called("--weights", weights, *options, "--out", "earlier run").exit_code == 0
    data = ("--data", "fashion:test", "--limit", 160)
    result = called(
        "--weights", flow.parent, "--raw", *options, *data, "--beside", "earlier run", "--out", "a flow's run"
    )
    assert result.exit_code == 0, result.output
    assert f"Sampling paths of SiT {flow.parent.name}: 4 paths of 5 steps" in result.stdout
    assert f"straightness of MIND {weights.parent.name}" in result.stdout
    results = json.loads((here / "a flow's run" / "results.json").read_text())
    assert results["generator"]["sampler"]["cfg_scale"] == 1 and results["flow_times"] == [i / 5 for i in range(6)]
    straight, viv = results["measurements"]
    assert len(straight["details"]["gaussian_length_ratio"]) == 5 and viv["n"] == 160
    assert "5 steps, even times" in straight["variant"]
    again = called("--weights", flow, *options, *data, "--out", "b", "--json", "--batch-size", 1)
    assert json.loads(again.stdout)["measurements"][0]["value"] == pytest.approx(straight["value"], rel=1e-6)


def test_two_ranks_walk_what_one_does(flow: Path, here: Path) -> None:
    options = ["--weights", str(flow), "--paths", "7", "--batch-size", "2", "--set", "steps=4"]
    options += ["--data", "fashion:test", "--limit", "160"]
    assert called(*options, "--out", "one").exit_code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*launcher, "-m", "latentlab", "trajectories", *options, "--out", "two"],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results  ") == 1  # rank 0 alone reports
    one, two = (json.loads((here / name / "results.json").read_text())["measurements"] for name in ("one", "two"))
    assert one == two


def test_wrong_weights(flow: Path, here: Path) -> None:
    assert "gone.safetensors does not exist" in refusal("--weights", "gone.safetensors")
    assert "unknown MIND weights 'fashion23'. Did you mean fashion32" in refusal("--weights", "fashion23")
    assert "holds no weights of a generator" in refusal("--weights", here)
    (here / "noise.safetensors").write_bytes(b"noise")
    assert "noise.safetensors" in refusal("--weights", "noise.safetensors")
    state = load_file(flow)
    max(state.values(), key=torch.numel).flatten()[5] = torch.nan
    save_file(state, here / "nan.safetensors", metadata=dict(read_metadata(flow)))
    assert "NaN" in refusal("--weights", "nan.safetensors")
    assert "at least 2 steps" in refusal("--weights", flow, "--set", "steps=1")
    assert "solver=sde draws some on the way. Set solver=euler" in refusal("--weights", flow, "--set", "solver=sde")
    assert "flow sampler settings: unknown key 'eta'" in refusal("--weights", flow, "--set", "eta=1")
    assert "--n must be at least 1, got 0" in refusal("--weights", flow, "--n", 0)
    encode_images(load_tokenizer("ibq", release="fashion32"), open_data("fashion:test", limit=20), here / "ibq")
    assert "was made by 'ibq' (fashion32), and not by" in refusal("--weights", flow, "--store", "ibq")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", 0), "--n must be at least 1, got 0"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--set", "eta=0.9"), "draw some on the way: eta=0.9 with eta_mode=keep. Set eta=1"),
        (("--set", "strategy=topk_topp", "--set", "soft_ratio=0"), "Set strategy=greedy"),
        (("--set", "eta_mode=ddim_sigma"), "Set eta=0"),
        (("--set", "steps=1"), "at least 2 steps"),
        (("--set", "topk=5"), "unknown sampler setting 'topk'"),
        (("--set", "steps"), "--set expects OPTION=VALUE"),
        (("--store", "nowhere"), "nowhere"),
        (("--store", "s", "--data", "fashion"), "give either --store or --data"),
        (("--limit", 5), "--limit goes with --data"),
        (("--out", "a file"), "--out a file is a file"),
        (("--beside", "nowhere"), "nowhere/results.json does not exist"),
        (("--averaged",), "holds raw weights only"),
        (("--model", "noise_factor=0.8"), "leave out noise_factor"),
        (("--precision", "float8"), "unknown precision 'float8'"),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_mistakes(weights: Path, here: Path, options: tuple[object, ...], words: str) -> None:
    (here / "a file").write_text("")
    assert words in refusal("--weights", weights, *options)


def test_a_store_of_another_tokenizer(weights: Path, here: Path) -> None:
    encode_images(load_tokenizer("ae", release="fashion32"), open_data("fashion:test", limit=20), here / "ae")
    assert "has no tokens, and MIND makes nothing else" in refusal("--weights", weights, "--store", "ae")
