"""The collapse study on the embedded tokenizers: what it writes, resuming, and the command."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from latentlab import UserError, load_tokenizer
from latentlab import collapse as collapse_module
from latentlab.cli.main import app
from latentlab.collapse import CONTROLS, PUBLISHED, Study, plan_study, read_pictures, run_study
from latentlab.collapse_report import COLLAPSE_SCHEMA_VERSION
from latentlab.data import open_data
from latentlab.pixels import SetPixels
from latentlab.tokenizers import Tokenizer, build_tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: load_tokenizer(name, release="fashion32") for name in ("kl", "ae", "ibq")}


def plan(
    tokenizers: dict[str, Tokenizer], continuous: str | None = "kl", discrete: str | None = "ibq", **options: Any
) -> Study:
    """A study that is over in seconds."""
    chosen = [None if name is None else tokenizers[name] for name in (continuous, discrete)]
    quick = {"subjects": 2, "seeds": 1, "iterations": 2}
    return plan_study(*chosen, open_data("fashion:test"), **{**quick, **options})


def without_command(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "command"}


# --- plan -----------------------------------------------------------------------------------------------------------


def test_positions_and_parameters_match(tokenizers: dict[str, Tokenizer]) -> None:
    """Both grids are 8x8, so the patch is 1; 6-D: 2 * 219 * 14 = 6,132 parameters beside 2 * 512 * 6 = 6,144."""
    study = plan(tokenizers)
    continuous, discrete = study.sides
    assert (continuous.path, continuous.patch, continuous.codes) == ("continuous", 1, 512)
    assert (discrete.path, discrete.shape, discrete.codes) == ("discrete", (16, 8, 8), 512)
    assert continuous.normalisation == "standardised per channel over the fitted views"
    alone = plan(tokenizers, discrete=None, controls=True)
    assert [side.codes for side in alone.sides] == [16384]
    assert alone.settings == (PUBLISHED, *CONTROLS)
    assert plan(tokenizers, dims=4, controls=True).settings[0].dims == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continuous": None, "discrete": None}, "give a continuous tokenizer, a discrete one, or both"),
        ({"continuous": "ibq", "discrete": None}, "'ibq' has a codebook: give it as the discrete tokenizer"),
        ({"discrete": "ae"}, "'ae' has no codebook: give it as the continuous tokenizer"),
        ({"dims": 7}, "'pairs' needs an even number of dimensions, got 7"),
        ({"patch": 3}, "a grid of 8x8 cannot be cut into patches of 3x3"),
        ({"continuous": None, "patch": 2}, "patch is for continuous latents"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"subjects": 10_000}, "and at least 1 to hold out make 10001, and the set has 10000"),
        ({"perceptual": "vgg"}, "unknown perceptual distance 'vgg'"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    tokenizers: dict[str, Tokenizer], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan(tokenizers, **options)
    assert "\n" not in str(caught.value)


def test_published_scaling_is_used(tokenizers: dict[str, Tokenizer]) -> None:
    side = plan(tokenizers).sides[0]
    scaled = replace(side, spec=replace(side.spec, shift=(1.0,), scale=(0.5,)))
    assert scaled.normalisation == "published shift and scale"
    z = side.codec.encode(SetPixels(open_data("fashion:test", limit=2)).take(slice(0, 2)))
    np.testing.assert_allclose(
        scaled.positions({}).rows(z).numpy(), ((z - 1) * 0.5).movedim(1, -1).reshape(-1, 8).numpy(), rtol=1e-6
    )


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole study of two images and one seed."""
    out = tmp_path_factory.mktemp("study")
    return out, run_study(plan(tokenizers), out, command="latentlab collapse")


def test_everything_is_written(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    written = json.loads((out / "results.json").read_text())
    assert written == json.loads(json.dumps(results)) and written["schema_version"] == COLLAPSE_SCHEMA_VERSION
    assert written["perceptual"] in ("lpips", "st_lpips") and written["data"]["name"] == "fashion:test"
    assert [(run["path"], run["parameters"]) for run in written["runs"]] == [
        ("continuous", 6132), ("discrete", 6144), ("continuous", 6132), ("discrete", 6144),
    ]  # fmt: skip
    for run in written["runs"]:
        assert run["iterations"] == [0, 2] and run["positions"] == 512
        for curves in run["curves"].values():
            assert ("token_accuracy" in curves) == (run["path"] == "discrete")
            assert all(len(curve) == 2 for curve in curves.values())
        pictures = read_pictures(out / run["picture"], 32)
        assert pictures.shape == (3, 4, 3, 32, 32)
    assert all((out / figure).is_file() for figure in written["figures"]) and len(written["figures"]) == 6
    summary = (out / "summary.md").read_text()
    verdict = written["verdict"]
    for part in (verdict["sentence"], verdict["caveat"], "latentlab collapse", "6,132", "figures/curves.png"):
        assert part in summary
    assert verdict["word"] in ("confirmed", "refuted", "undecided") and "memorises" in verdict["caveat"]


def test_pictures_are_views_reconstructions_and_what_came_through(
    finished: tuple[Path, dict[str, Any]], tokenizers: dict[str, Tokenizer]
) -> None:
    out, results = finished
    continuous, discrete = (read_pictures(out / run["picture"], 32) for run in results["runs"][:2])
    np.testing.assert_array_equal(continuous[0], discrete[0])  # the same views for both
    views = torch.from_numpy(continuous[0].copy()).float() / 127.5 - 1
    again = tokenizers["kl"].decode(tokenizers["kl"].encode(views)).numpy()
    assert np.abs((again + 1) * 127.5 - continuous[1]).mean() < 2  # of views rounded to 8 bits
    assert np.abs(continuous[2].astype(int) - continuous[1]).mean() > 5  # hardly trained


def test_a_killed_study_continues(
    finished: tuple[Path, dict[str, Any]], tokenizers: dict[str, Tokenizer], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Interrupted in its third run, with half a picture left over: two runs are kept, and all is as if never interrupted."""
    original, calls = collapse_module.run_bottleneck, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(collapse_module, "run_bottleneck", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(plan(tokenizers), tmp_path)
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2 and not (tmp_path / "results.json").exists()
    (tmp_path / "runs" / ".left.png.123.tmp").write_bytes(b"half")
    calls.clear()
    calls += [None, None, None]
    results = run_study(plan(tokenizers), tmp_path)
    assert len(calls) == 3 + 2 and "2 of 4 runs" in capsys.readouterr().err
    assert without_command(results) == without_command(finished[1])
    for picture in (tmp_path / "runs").glob("[!.]*.png"):
        assert picture.read_bytes() == (finished[0] / "runs" / picture.name).read_bytes()


def test_only_what_changed_is_made_again(
    finished: tuple[Path, dict[str, Any]], tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = finished
    calls: list[str] = []
    original = collapse_module.run_bottleneck

    def counted(sets: Any, positions: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append("discrete" if positions.discrete else "continuous")
        return original(sets, positions, *args, **kwargs)

    monkeypatch.setattr(collapse_module, "run_bottleneck", counted)

    def made(**options: Any) -> list[str]:
        calls.clear()
        collapse_module._all_runs(plan(tokenizers, **options), out)
        return calls.copy()

    assert made() == []
    assert made(continuous="ae") == ["continuous"] * 2  # other weights, same names of runs
    assert made(continuous="ae", iterations=1) == ["continuous", "discrete"] * 2
    picture = next((out / "runs").glob("discrete*.png"))
    picture.unlink()
    assert made(continuous="ae", iterations=1) == ["discrete"]
    step = next((out / "runs").glob("continuous*.json"))
    step.write_text(step.read_text()[:50])
    assert made(continuous="ae", iterations=1) == ["continuous"]


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match=r"x\.png is damaged .*delete it"):
        read_pictures(tmp_path / "x.png", 32)


# --- command --------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["collapse", *map(str, arguments)], prog_name="latentlab")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def write_narrow(path: Path, name: str, release: str, architecture: dict[str, Any]) -> None:
    """Seeded weights of a narrow network in a file that says so."""
    torch.manual_seed(0)
    header = {"architecture": json.dumps(architecture), "name": name, "release": release}
    save_file(build_tokenizer(architecture).state_dict(), path, metadata=header)


def test_command_alone_prints_verdict_and_files(place: Path) -> None:
    """One tokenizer, one image: undecided, with the reason."""
    result = command("--continuous", "kl", "--images", 1, "--seeds", 1, "--iterations", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "undecided at this scale: the continuous latents of kl may or may not collapse" in result.stdout
    assert "no discrete tokenizer was run" in result.stdout and "one image says nothing about others" in result.stdout
    folder = Path("runs/collapse-kl-fashion-test")
    for name in ("results.json", "summary.md", "figures"):
        assert str(folder / name) in result.stdout and (folder / name).exists()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", result.output)


def test_command_with_weight_files_and_images_of_ones_own(place: Path) -> None:
    """SD-VAE's 8x8 cells of 4 numbers against IBQ's 4x4 ids are patches of 2x2: 16 numbers, as published."""
    shared = {"ch": 32, "num_res_blocks": 1, "attn_resolutions": [], "resolution": 32, "norm_groups": 8}
    kl = shared | {"ch_mult": [1, 1], "z_channels": 4, "quantizer": "kl"}
    ibq = shared | {"ch_mult": [1, 1, 1], "z_channels": 8, "quantizer": "ibq", "n_embed": 64}
    write_narrow(place / "sd.safetensors", "sd-vae", "ft-mse", kl)
    write_narrow(place / "ibq.safetensors", "ibq", "imagenet256", ibq)
    (place / "images" / "a").mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "images" / "a" / f"{i}.png")
    result = command(
        "--continuous", "sd-vae", "--discrete", "ibq", "--weights-continuous", "sd.safetensors", "--weights-discrete",
        "ibq.safetensors", "--data", "imagefolder:images", "--image-size", 32, "--images", 1, "--seeds", 1, "--iterations", 1,
        "--perceptual", "st_lpips_vgg", "--device", "cpu", "--out", "there",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = json.loads(Path("there/results.json").read_text())
    side = results["tokenizers"]["continuous"]
    assert (side["patch"], side["normalisation"]) == (2, "published shift and scale") and side["latent_shape"] == [
        4,
        16,
        16,
    ]
    for text in (result.stdout, Path("there/summary.md").read_text()):
        assert "judged by ST-LPIPS on VGG-16 (st_lpips_vgg)" in text
        assert "748 (continuous) and 768 (discrete) instead of the published 196,592 and 196,608" in text
        assert "2 x 6 numbers x 64 codes of ibq = 768" in text


def test_command_prints_json_alone(place: Path) -> None:
    result = command(
        "--discrete", "ibq", "--images", 1, "--seeds", 1, "--iterations", 1, "--dims", 4, "--device", "cpu", "--json",
        "--out", "there",
    )  # fmt: skip
    results = json.loads(result.stdout)
    assert list(results["tokenizers"]) == ["discrete"] and results["settings"][0]["name"] == "4-D, circles"
    assert "there/summary.md" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", 3], "even number of dimensions, got 3"),
        (["--images", 0], "--images must be at least 1, got 0"),
        (["--continuous", "k"], "unknown tokenizer 'k'"),
        (
            ["--continuous", "sd-vae"],
            r"diffusion_pytorch_model.safetensors \(334.6 MB\) are not .*stabilityai--sd-vae-ft-mse/",
        ),
        (["--continuous", "sd-vae", "--weights-continuous", "absent.safetensors"], "absent.safetensors does not exist"),
        (["--perceptual", "lpips_vgg"], "vgg16-397923af.pth .* not on this machine"),
        (["--continuous", "va-vae"], "vavae-imagenet256-f16d32-dinov2.pt .* not on this machine"),
        (["--continuous", "taef2", "--weights-continuous", "absent"], "absent does not exist: give the folder"),
        (["--data", "imagefolder:absent"], "absent does not exist"),
    ],
)
def test_command_mistakes_are_one_line(place: Path, arguments: list[object], message: str) -> None:
    result = command(*arguments, "--device", "cpu")
    assert result.exit_code == 2 and result.stdout == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", result.stderr), result.stderr
    assert not (place / "runs").exists()
