"""The comparison of generators as a user runs it, tiny: equal compute, points measured once, failures that cost no other."""

import copy
import csv
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.errors import UserError
from latentlab.pixels import as_pixels
from latentlab.quality.image_sets import EvaluationSet
from latentlab.study.training import generators as study
from latentlab.study.training import runs as study_training
from latentlab.study.training import scoring
from latentlab.study.training.generators_report import draw_figures, quality, write_tables
from latentlab.study.training.runs import Training
from latentlab.study.training.scoring import Judge
from mind.comparison import Comparison, load_comparison
from mind.kinds import open_recipe, read_run
from mind.training import kept_weights, train

SMALL = (
    "samples=12", "reference_limit=24", "steps=8", "train.data.limit=64", "train.optimiser.batch_size=4",
    "train.log_every=2", "train.optimiser.warmup_steps=1",
)  # fmt: skip

start_process = study_training._start


class Finished:
    """A process that has ended."""

    def poll(self) -> int:
        return 0


def started_here(training: Training, runs: Path, jobs: int, device: str) -> Any:
    """Train in this process, which saves seconds; what is to fail runs as a user's would."""
    if training.config.optimiser.peak > 1:
        return start_process(training, runs, jobs, device)
    train(training.config, partial(open_recipe, training.kind, training.config), training.folder(runs), device=device)
    return Finished()


@pytest.fixture(scope="module", autouse=True)
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(study_training, "_start", started_here)
        yield folder


@pytest.fixture(scope="module")
def finished(small_world: Path) -> tuple[Path, dict[str, Any]]:
    """The shipped smoke comparison, smaller still, through the command."""
    out = small_world / "out"
    arguments = ["study", "generators", "--config", "smoke", "--jobs", "1", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, *(part for one in SMALL for part in ("--set", one))])
    assert result.exit_code == 0, result.output
    assert "Quality at the end of training" in result.output and str(out / "table.md") in result.output
    return out, json.loads((out / "results.json").read_text())


def test_all_kinds_take_part_with_equal_compute(finished: tuple[Path, dict[str, Any]]) -> None:
    """Within half a step of each, which is what whole steps allow."""
    _, results = finished
    assert [one["kind"] for one in results["generators"]] == ["mind", "emigm", "sit", "lightningdit", "dit"]
    for one in results["generators"]:
        spent = one["steps"] * one["operations_per_step"]
        assert abs(spent - results["operations"]) <= one["operations_per_step"] / 2
    parameters = [one["parameters"] for one in results["generators"]]
    assert max(parameters) <= 1.1 * min(parameters)
    assert results["generators"][0]["steps"] == 8


def test_runs_did_what_the_table_says(finished: tuple[Path, dict[str, Any]]) -> None:
    for one in finished[1]["generators"]:
        (run,) = one["runs"]
        folder = Path(run["run"])
        stored = load_file(folder / f"{one['kind']}_ema.safetensors")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == one["steps"] == run["curve"][-1]["step"]
        trained = sum(tensor.numel() for tensor in stored.values())
        assert one["parameters"] <= trained <= 1.05 * one["parameters"]  # and tables that are not trained
        half = kept_weights(folder, run["curve"][0]["step"])
        kept = load_file(half / f"{one['kind']}_ema.safetensors")
        assert any(not torch.equal(kept[name], stored[name]) for name in stored)
        assert run["curve"][-1]["seconds"] == one["steps"] * one["seconds_per_step"] > 0


def test_points_are_where_they_should_be(finished: tuple[Path, dict[str, Any]]) -> None:
    """The end of the curve is scale 1 of the sweep; guidance doubles the evaluations."""
    _, results = finished
    for one in results["generators"]:
        (run,) = one["runs"]
        assert [point["share"] for point in run["curve"]] == [0.5, 1.0]
        assert [point["scale"] for point in run["guidance"]] == [1.0, 2.0]
        plain, guided = run["guidance"]
        assert plain["images"] == run["curve"][-1]["images"] != guided["images"]
        assert plain["sampling"]["evaluations_per_image"] == 4 and guided["sampling"]["evaluations_per_image"] == 8
        assert [cost["evaluations_per_image"] for cost in run["cost"]] == [4, 8]
        assert all(0 < cost["decoding_seconds"] < cost["seconds_per_image"] for cost in run["cost"])


def test_values_are_those_of_an_evaluation(finished: tuple[Path, dict[str, Any]]) -> None:
    """`latentlab evaluate` on the images of a point gives the numbers of the table."""
    out, results = finished
    point = results["generators"][2]["runs"][0]["guidance"][1]
    target = out / "again"
    arguments = [
        "evaluate",
        "--samples",
        str(out / point["images"]),
        "--reference",
        "fashion:test",
        "--metrics",
        "fd,pr",
    ]
    result = CliRunner().invoke(app, [*arguments, "--reference-limit", "24", "--device", "cpu", "--out", str(target)])
    assert result.exit_code == 0, result.output
    again = {m["name"]: m["value"] for m in json.loads((target / "results.json").read_text())["measurements"]}
    for name, found in point["quality"].items():
        assert again[name] == pytest.approx(found["value"], rel=1e-6)


def test_real_images_and_reconstructions_score_better_than_generators(finished: tuple[Path, dict[str, Any]]) -> None:
    """Far outside noise: eight steps of training against photographs. Twelve images do not tell these from reconstructions."""
    _, results = finished
    real = quality({"quality": results["floors"]["real images"]}, "distance")[0]
    rebuilt = quality({"quality": results["floors"]["reconstructions of kl"]}, "distance")[0]
    worst = [quality(one["runs"][0]["guidance"][0], "distance")[0] for one in results["generators"]]
    assert rebuilt == pytest.approx(real, rel=0.25) and max(real, rebuilt) < min(worst)


def test_tables_and_figures_are_written(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert len(results["figures"]) == 6 and all((out / figure).is_file() for figure in results["figures"])
    text = (out / "table.md").read_text()
    assert re.search(r"\| MIND \| ibq \| [\d,]+ \| 8 x 4 \|", text)
    assert "| (real images) |" in text and "published: s/image (RTX 3090, one at a time)" in text
    lines = list(csv.DictReader((out / "points.csv").read_text().splitlines()))
    assert len(lines) == 5 * 4  # generators x (two shares and two scales)
    first = next(line for line in lines if line["generator"] == "SiT" and line["scale"] == "2.0")
    point = results["generators"][2]["runs"][0]["guidance"][1]
    assert float(first["distance"]) == quality(point, "distance")[0] and first["share"] == ""


def again(out: Path, runs: Path | None = None, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """Run a changed comparison in the same folder; return results and the weights that were drawn from anew."""
    whole = load_comparison("smoke", SMALL).model_dump()
    plan = study.plan_comparison(Comparison.model_validate({**whole, **changes}), out, runs=runs, jobs=1)
    drawn: list[str] = []
    original = scoring.generate

    def counted(generator: Any, folder: Path, **options: Any) -> Any:
        drawn.append(generator.facts()["generator"])
        return original(generator, folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "generate", counted)
        patch.setattr(study, "draw_figures", lambda *_: [])
        return study.run_comparison(plan, out), drawn


def test_without_a_choice_of_scales_no_guidance_is_shown(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, results = finished
    once = copy.deepcopy(results)
    for one in once["generators"]:
        one["runs"][0]["guidance"] = one["runs"][0]["guidance"][:1]
        one["runs"][0]["cost"] = one["runs"][0]["cost"][:1]
    for told, swept in ((results, True), (once, False)):
        drawn = draw_figures(told, tmp_path / str(swept))
        write_tables({**told, "figures": drawn}, tmp_path / str(swept))
        table = (tmp_path / str(swept) / "table.md").read_text()
        assert (
            ("figures/guidance.png" in drawn)
            is ("best guided" in table)
            is ("chosen on the very images" in table)
            is swept
        )
        assert (
            "figures/learning_curves.png" in drawn
            and len({row.count("|") for row in _rows_under(table, "Quality")}) == 1
        )


def _rows_under(table: str, heading: str) -> list[str]:
    (section,) = (part for part in table.split("\n## ") if part.startswith(heading))
    return [line for line in section.splitlines() if line.startswith("|")]


def test_only_what_is_new_is_computed(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*.safetensors")}
    repeated, drawn = again(out)
    assert drawn == []
    for one, first in zip(repeated["generators"], results["generators"], strict=True):
        for kept, point in zip(one["runs"][0]["curve"], first["runs"][0]["curve"], strict=True):
            assert {**kept, "seconds": 0} == {**point, "seconds": 0}  # the pace of a step is timed anew
    scales, drawn = again(out, guidance=[1.0, 1.5, 2.0])
    assert drawn == ["mind", "emigm", "sit", "lightningdit", "dit"]
    assert [point["scale"] for point in scales["generators"][0]["runs"][0]["guidance"]] == [1.0, 1.5, 2.0]
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*.safetensors")} == before


def test_comparisons_that_share_their_runs_share_samples(
    finished: tuple[Path, dict[str, Any]], small_world: Path
) -> None:
    """Pictures are found from the folder of either."""
    out, _ = finished
    shared, other = small_world / "shared", small_world / "other"
    shared.mkdir()
    for place in (*(out / "runs").iterdir(), out / "points", out / "samples"):
        (shared / place.name).symlink_to(place)
    results, drawn = again(other, shared)
    assert drawn == [] and not (other / "points").exists()
    assert all((other / one["runs"][0]["curve"][-1]["images"] / "grid.png").is_file() for one in results["generators"])


def test_a_generator_that_fails_costs_no_other(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Training that explodes, in a process of its own, and images that cannot be written."""
    out, _ = finished
    one = load_comparison("smoke", SMALL).model_dump()["generators"]
    rows = [one[2], {**one[2], "label": "explodes", "train": {**one[2]["train"], "optimiser.learning_rate": 1e30}}]
    rows.append({**one[2], "label": "full disk", "sample": {"steps": 3}})
    original = scoring.generate

    def failing(generator: Any, *rest: Any, **options: Any) -> Any:
        if generator.settings.steps == 3 and generator.settings.cfg_scale == 2:
            raise OSError("no space\nleft")
        return original(generator, *rest, **options)

    monkeypatch.setattr(scoring, "generate", failing)
    results, _ = again(out, generators=rows)
    fine, explodes, full = (found["runs"][0] for found in results["generators"])
    assert fine["error"] is None and fine["curve"][-1]["quality"]
    assert explodes["error"].startswith("training: not finite at step") and Path(explodes["log"]).is_file()
    assert full["error"] == "OSError: no space left" and full["cost"] == [] and full["curve"][-1]["quality"]
    text = (out / "table.md").read_text()
    assert "| explodes | failed |" in text and "failed: full disk, seed 0" in text
    assert "no space left" in capsys.readouterr().err


def test_what_cannot_be_judged_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    """Three images have no three neighbours each: an empty point must not be kept."""
    images = torch.zeros(3, 3, 32, 32)
    samples = EvaluationSet("three", as_pixels(images), {"kind": "images", "path": "three", "n": 3})
    with pytest.raises(UserError, match="neighbours"):
        Judge("fashion:test", 24).judge(samples, "cpu")


def test_runs_are_named_after_the_content_of_their_files(tmp_path: Path) -> None:
    """The same name with another tokenizer, or another folder of images, is another run."""

    def name(*overrides: str) -> str:
        config = read_run("sit", "sit-fashion", overrides)
        return Training("sit", tuple(overrides), config).name

    weights = tmp_path / "kl.safetensors"
    names = {name()}
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        names |= {name(f"data.weights={weights}")}
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for shade in (10, 20):
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(folder / "1.png")
        names |= {name(f"data.train=imagefolder:{folder.parent}", "data.image_size=32")}
    assert len(names) == 5 and name() in names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parameters_within=0.001"], r"parameters differ by \d+\.\d %.*MIND [\d,]+, eMIGM"),
        (["guidance=[0.5]"], "guidance"),
        (["curve=[2]"], "curve"),
        (["samples=0"], "samples"),
        (
            [
                "generators=[{label: a, kind: sit, base: sit-fashion, sample: {stages: 4}}, {label: b, kind: sit, base: sit-b}]"
            ],
            "generator 'a': .*stages",
        ),
        (["train.optimizer.steps=4"], "generator 'MIND': .*optimizer"),
        (["generators=[]"], "at least 2"),
        (["train.optimiser.steps=4"], "train.optimiser.steps follows from steps"),
        (["reference=fashion:tset"], "tset"),
        (["extractor=lite0"], "unknown feature extractor 'lite0'"),
    ],
)
def test_mistakes_are_one_line(small_world: Path, overrides: list[str], message: str) -> None:
    arguments = ["study", "generators", "--config", "smoke", "--out", str(small_world / "bad")]
    arguments += [part for one in (*SMALL, *overrides) for part in ("--set", one)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and re.search(message, result.output) and "Traceback" not in result.output


def test_comparison_checks_its_generators() -> None:
    whole = load_comparison("smoke").model_dump()
    first, second = whole["generators"][:2]
    for rows, message in (
        ([first, {**second, "label": first["label"]}], "two generators are called 'MIND'"),
        ([first, {**second, "kind": "gan"}], "unknown kind 'gan'"),
        ([first, {**second, "published": {"is": 1.0}}], "published has no column is"),
        ([first, {**second, "sample": {"cfg_scale": 2}}], "cfg_scale is swept"),
    ):
        with pytest.raises(ValueError, match=message):
            Comparison.model_validate({**whole, "generators": rows})
    assert Comparison.model_validate({**whole, "curve": [0.5, 0.25]}).shares() == (0.25, 0.5, 1.0)


def test_shipped_comparison_can_be_planned(small_world: Path) -> None:
    """Its configurations exist and its sampler settings too; the counts are asserted by the plan itself."""
    comparison = load_comparison("generators")
    for one in comparison.generators:
        config = read_run(
            one.kind, one.base, [f"{key}={json.dumps(value)}" for key, value in comparison.training(one, 0).items()]
        )
        assert config.optimiser.batch_size == 32
    with pytest.raises(UserError, match="unknown comparison 'generator'"):
        load_comparison("generator")
