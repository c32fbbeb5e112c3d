"""``latentlab trajectories`` as a user meets it: the table, the files, JSON, and one line for every mistake."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from latentlab.cli.main import app
from latentlab.data import open_data
from latentlab.encoding import encode_images
from latentlab.tokenizers import load_tokenizer
from mind import Mind, save_mind, sized

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
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "ibq"
    encode_images(load_tokenizer("ibq", release="fashion32"), open_data("fashion:test", limit=160), path)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    return tmp_path


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["trajectories", *map(str, arguments)], prog_name="latentlab")


def refusal(*arguments: object) -> str:
    result = called(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def test_table_files_and_the_settings_of_an_ode(weights: Path, here: Path) -> None:
    result = called("--weights", weights, "--n", 4, "--set", "steps=6")
    assert result.exit_code == 0, result.output
    out = Path("runs") / "trajectories-mind-4-steps-6"
    assert "Sampling paths of MIND mind: 4 paths of 6 steps, seed 0" in result.stdout
    assert "straightness" in result.stdout and "efficiency" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        f"results  {out / 'results.json'}",
        f"summary  {out / 'summary.md'}",
        f"figures  {out / 'figures'} (2 files)",
    ]
    results = json.loads((here / out / "results.json").read_text())
    sampler = results["generator"]["sampler"]
    quiet = ("steps", "cfg_scale", "eta", "eta_mode", "strategy", "soft_ratio")
    assert [sampler[name] for name in quiet] == [6, 1.0, 1.0, "keep", "greedy", 0.25]
    times = results["flow_times"]  # the schedule begins at 0.001: signal sqrt(t), noise 0.6 sqrt(1-t)
    assert times[0] == pytest.approx(0.001**0.5 / (0.001**0.5 + 0.6 * 0.999**0.5)) and times[-1] == 1
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", 0), "--n must be at least 1, got 0"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--set", "eta=0.9"), "draw some on the way: eta=0.9 with eta_mode=keep. Set eta=1"),
        (("--set", "strategy=topk_topp"), "Set strategy=greedy"),
        (("--set", "eta_mode=ddim_sigma"), "Set eta=0"),
        (("--set", "steps=1"), "at least 2 steps"),
        (("--set", "topk=5"), "unknown sampler setting 'topk'"),
        (("--set", "steps"), "--set expects OPTION=VALUE"),
        (("--store", "nowhere"), "nowhere"),
        (("--store", "s", "--data", "fashion"), "give either --store or --data"),
        (("--limit", 5), "--limit goes with --data"),
        (("--out", "a file"), "--out a file is a file"),
        (("--device", "tpu"), "unknown device 'tpu'"),
    ],
)
def test_mistakes(weights: Path, here: Path, options: tuple[object, ...], words: str) -> None:
    (here / "a file").write_text("")
    assert words in refusal("--weights", weights, *options)


def test_a_store_of_another_tokenizer(weights: Path, here: Path) -> None:
    encode_images(load_tokenizer("ae", release="fashion32"), open_data("fashion:test", limit=20), here / "ae")
    assert "has no tokens, and MIND makes nothing else" in refusal("--weights", weights, "--store", "ae")
