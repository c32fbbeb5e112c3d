"""The command line as a user meets it: start time, one-line errors, exit codes, plain output, plug-ins."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab import LatentStore, UserError
from latentlab.cli import doctor as doctor_module
from latentlab.tokenizers import tokenizer_names

from .commands import latentlab, process, refusal


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from latentlab.cli.main import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(re.findall(r"'(\w+)", shown.splitlines()[-1]))
    assert "typer" in loaded and not loaded & {"torch", "numpy", "scipy", "pandas", "matplotlib", "pydantic", "rich"}
    for command in ("analyze", "encode", "train", "tokenizers", "doctor"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)


@pytest.mark.parametrize("command", [["analyze"], ["encode"], ["train", "tokenizer"], ["tokenizers"], ["doctor"]])
def test_every_command_has_help(command: list[str]) -> None:
    result = latentlab(*command, "--help")
    assert result.exit_code == 0 and "Usage: latentlab" in result.stdout


def test_version() -> None:
    assert re.fullmatch(r"latentlab \d+\.\d+\.\d+\n", latentlab("--version").stdout)


def test_user_error_is_one_line_without_traceback() -> None:
    run = process("analyze", "--tokenizer", "ibk")
    assert run.returncode == 2 and run.stdout == ""
    assert re.fullmatch(r"error: unknown tokenizer 'ibk'\. Did you mean ibq.*Available: .*ibq.*\n", run.stderr)


def test_debug_shows_the_traceback() -> None:
    result = latentlab("--debug", "analyze")
    assert result.exit_code == 2 and "Traceback" in result.stderr and "error: give --tokenizer" in result.stderr
    os.environ.pop("LATENTLAB_DEBUG")


def test_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentlab.tokenizers.zoo.zoo_entries", interrupt)
    result = latentlab("tokenizers")
    assert result.exit_code == 130 and result.stderr == "interrupted: the same command continues where it stopped\n"


def test_defect_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlab.tokenizers.zoo.zoo_entries", lambda: 1 / 0)
    result = latentlab("tokenizers")
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert result.stderr.startswith("internal error: ZeroDivisionError: division by zero (latentlab --debug")


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "--tokenizer", "kl", "--limit", 8, "--out", "store"),
        ("analyze", "--tokenizer", "kl", "--limit", 8),
        ("compare", "--tokenizers", "kl,ae", "--limit", 8),
    ],
)
def test_a_full_gpu_is_one_line_that_says_what_to_lower(
    command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("latentlab.encoding.encode_batch", full)
    assert "the memory of the GPU does not hold so much at a time: lower --batch-size" in refusal(*command)


def test_reader_that_leaves_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m latentlab tokenizers | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.stdout.strip() in ("0", "1") and run.stderr == ""


# ---- tokenizers, doctor, train


def test_tokenizers_are_listed_with_their_weights() -> None:
    listed = json.loads(latentlab("tokenizers", "--json").stdout)
    assert [*dict.fromkeys(entry["name"] for entry in listed)] == tokenizer_names()
    mar = next(entry for entry in listed if entry["name"] == "mar-kl16")
    assert mar["latent_shape"] == [16, 16, 16] and mar["licence"] == "MIT"
    assert mar["weights_present"] is False and mar["weights_path"] is None
    assert mar["size_bytes"] == 265_856_244 and mar["origin"] == "huggingface.co/jadechoghari/mar"
    table = latentlab("tokenizers").stdout
    row = next(line for line in table.splitlines() if "mar-kl16" in line)
    assert all(part in row for part in ("imagenet256", "kl", "16 x 16 x 16 (256)", "265.9 MB", "MIT", "not here"))
    assert "`latentlab fetch NAME --release RELEASE`" in table


def test_doctor_reports_in_words_and_as_json() -> None:
    report = latentlab("doctor")
    shown = json.loads(latentlab("doctor", "--json").stdout)
    assert report.exit_code == 0 and shown["healthy"] and report.stdout.endswith("the basics work\n")
    checks = {check["name"]: check for check in shown["checks"]}
    assert checks["data fashion:test"] == {
        "name": "data fashion:test", "status": "ok", "detail": "10,000 images of 32x32"
    }  # fmt: skip
    assert "torch" in checks["libraries"]["detail"] and checks["devices"]["detail"].startswith("cpu")
    assert checks["weights mar-kl16/imagenet256"]["status"] == "note"
    assert checks["offline"]["detail"].startswith(
        "analyze, compare and encode with --data fashion, train with a shipped"
    )
    for check in shown["checks"]:
        assert f"{check['status']:<4}  {check['name']} " in report.stdout


def test_doctor_names_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(split: str) -> str:
        raise UserError(f"{split} is damaged: install latentlab again")

    monkeypatch.setattr(doctor_module, "_embedded_data", missing)
    result = latentlab("doctor")
    assert result.exit_code == 1 and "bad   data fashion:test" in result.stdout
    assert "the basics do not work" in result.stdout


def test_train_writes_weights_that_load() -> None:
    settings = [
        "optimiser.steps=2",
        "optimiser.batch_size=4",
        "validation_images=8",
        "data.limit=16",
        "loss.perceptual=0",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    result = latentlab("train", "tokenizer", "--config", "ae", *options, "--out", "a run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    path = Path(re.search(r"^weights +(.*)$", result.stdout, re.MULTILINE)[1])
    encoded = latentlab("encode", "--tokenizer", "ae", "--weights", path, "--limit", 4, "--out", "store")
    assert encoded.exit_code == 0, encoded.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no such.yaml"], "there is no tokenizer configuration no such.yaml"),
        (["--config", "ibk"], "unknown tokenizer configuration 'ibk'. Did you mean ibq"),
        (["--config", "ae", "--set", "optimiser.stepz=2"], "stepz"),
        (["--config", "ae", "--set", "nonsense"], "--set expects KEY=VALUE"),
        (["--config", "ae", "--device", "tpu"], "unknown device 'tpu'"),
        (["--config", "ae", "--out", "file"], "--out file is a file"),
    ],
)
def test_bad_arguments_of_train(arguments: list[str], message: str) -> None:
    Path("file").touch()
    assert message in refusal("train", "tokenizer", *arguments)


# ---- plug-ins


def test_plugin_brings_a_tokenizer_and_a_measurement(installed_example: tuple[Path, Path]) -> None:
    path = os.pathsep.join([*map(str, installed_example), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = process(
        "analyze", "--tokenizer", "pixel-patches", "--metrics", "channel_correlation,sec", "--limit", "12", "--json",
        PYTHONPATH=path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results["tokenizer"]["name"] == "pixel-patches"
    correlation, sec = results["measurements"]
    assert correlation["name"] == "channel_correlation" and sec["name"] == "sec"
    pixels = LatentStore(results["latents"]["path"]).take(slice(None)).double()
    table = np.abs(np.corrcoef(pixels.transpose(0, 1).flatten(1).numpy()))
    c = len(table)
    assert correlation["value"] == pytest.approx((np.nansum(table) - c) / (c * (c - 1)), rel=1e-6)
