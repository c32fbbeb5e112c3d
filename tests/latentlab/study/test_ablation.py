"""A whole ablation of tiny models on a few images: shared runs, cached rows, failures that cost no other row, the command."""

import csv
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.errors import UserError
from latentlab.study.training import ablation as ablation_module
from latentlab.study.training import runs as study_training
from latentlab.study.training import scoring
from latentlab.study.training.ablation import plan_ablation, run_ablation
from latentlab.study.training.ablation_report import print_ablation
from latentlab.study.training.runs import Training, final_losses
from latentlab.study.training.scoring import Judge, Point
from mind.ablation import Grid
from mind.generate import generate
from mind.mind_recipe import train_mind as train
from mind.pipeline import MindGenerator

WEIGHTS = "mind.safetensors"
start_process = study_training._start

BASE: dict[str, Any] = {
    "name": "tiny",
    "model": {"size": "mind-fashion", "hidden_size": 16, "num_heads": 2, "num_blocks": 1, "cond_dim": 8, "mapper_width": 16},
    "data": {"tokenizer": "ibq", "release": "fashion32", "train": "fashion:test", "limit": 40, "mirror": False},
    "optimiser": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    "precision": "float32",
    "log_every": 1,
}  # fmt: skip

ROWS: list[dict[str, Any]] = [
    {"label": "sphere", "published": {"fid": 52.1}},
    {"label": "sphere, greedy", "sample": {"greedy_ratio": 1.0}, "published": {"fid": 1.0}},
    {"label": "no sphere", "train": {"model.normalise": False, "model.embedding_init": "normal"}, "published": {"fid": 280.78}},
    {"label": "explodes", "train": {"optimiser.learning_rate": 1e30, "model.normalise": False}},
]  # fmt: skip


def grid(path: Path, **changes: Any) -> Grid:
    content = {
        "title": "Tiny", "base": str(path), "samples": 6, "reference_limit": 8, "rows": ROWS, "extractor": "fashion-classifier",
        "sample": {"steps": 2, "cfg_scale": 1.0, "soft_ratio": 0.0, "greedy_ratio": 0.0},
        "published": {"source": "nowhere", "columns": {"fid": "FID"}, "compare": "fid"},
    }  # fmt: skip
    return Grid.model_validate({**content, **changes})


class Finished:
    """A process that has ended."""

    def poll(self) -> int:
        return 0


def started_here(training: Training, runs: Path, jobs: int, device: str) -> Any:
    """Train in this process, which saves seconds; what is to fail runs as a user's would."""
    if training.config.optimiser.peak > 1:
        return start_process(training, runs, jobs, device)
    train(training.config, runs / training.name, device=device)
    return Finished()


@pytest.fixture(scope="module", autouse=True)
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, and 8 real images to compare with."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(study_training, "_start", started_here)
        (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
        yield folder


@pytest.fixture(scope="module")
def finished(small_world: Path) -> tuple[Path, dict[str, Any]]:
    """Everything done once."""
    out = small_world / "out"
    plan = plan_ablation(grid(small_world / "base.yaml"), out, jobs=2)
    return out, run_ablation(plan, out, command="latentlab ablate tiny")


def row(results: dict[str, Any], label: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in results["rows"] if one["label"] == label)
    return found


def test_rows_that_train_the_same_share_a_run(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert len(list((out / "runs").glob(f"*/{WEIGHTS}"))) == 2
    first, second = (row(results, label)["cells"][0] for label in ("sphere", "sphere, greedy"))
    assert first["training"] == second["training"] and first["samples"] != second["samples"]
    run = Path(first["training"]["run"])
    assert first["losses"] == final_losses(run)
    assert yaml.safe_load((run / "config.yaml").read_text())["optimiser"]["steps"] == 2


def test_numbers_are_those_of_the_tables(finished: tuple[Path, dict[str, Any]]) -> None:
    """On the spheres rows have norm sqrt(16/4); N(0,1) rows of 16 numbers have about 4 - 1/16."""
    _, results = finished
    assert row(results, "sphere")["values"]["mean latent norm"] == [pytest.approx(2, abs=0.01)]
    assert row(results, "no sphere")["values"]["mean latent norm"] == [pytest.approx(3.94, abs=0.05)]
    for label in ("sphere", "sphere, greedy", "no sphere"):
        (distance,) = row(results, label)["values"]["distance"]
        assert np.isfinite(distance) and distance > 0
        assert all(0 <= row(results, label)["values"][name][0] <= 1 for name in ("precision", "recall"))
        assert 5 < row(results, label)["values"]["train loss"][0] < 9


def test_failed_row_is_named_with_its_reason_and_log(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    (cell,) = row(results, "explodes")["cells"]
    assert "not finite at step 1" in cell["error"] and "\n" not in cell["error"]
    log = Path(cell["log"])
    assert "not finite" in log.read_text() and log.parent == out / "runs"
    config = yaml.safe_load((log.with_suffix("") / "config.yaml").read_text())
    assert (
        config["model"]["normalise"] is False and config["optimiser"]["learning_rate"] == 1e30
    )  # came through the command
    text = (out / "table.md").read_text()
    assert "| explodes | failed | - | - | - | - |" in text and cell["log"] in text


def test_everything_is_written(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert all((out / figure).is_file() for figure in results["figures"]) and len(results["figures"]) == 4
    text = (out / "table.md").read_text()
    assert "ours: fd_fashion_classifier on fashion:test (n=6)" in text and "published: FID" in text
    lines = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [line["row"] for line in lines] == [one["label"] for one in ROWS]
    assert [line["published_fid"] for line in lines] == ["52.1", "1.0", "280.78", ""]
    assert (out / row(results, "sphere")["cells"][0]["samples"] / "grid.png").is_file()


def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Name what is sampled from now on by the settings in which the rows differ."""
    calls: list[str] = []

    def counted(generator: Any, *args: Any, **kwargs: Any) -> Any:
        sphere = "sphere" if generator.model.config.normalise else "no sphere"
        greedy, eta = generator.settings.greedy_ratio == 1, generator.settings.eta == 0
        calls.append("eta" if eta else f"{sphere}, greedy" if greedy else sphere)
        return generate(generator, *args, **kwargs)

    monkeypatch.setattr(scoring, "generate", counted)
    return calls


def test_only_what_is_new_is_computed(
    finished: tuple[Path, dict[str, Any]], small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing the second time; of a changed grid the new row; with a damaged record that row."""
    out, results = finished
    calls = measured(monkeypatch)
    monkeypatch.setattr(ablation_module, "_draw", lambda *args: [])
    before = {file: file.stat().st_mtime_ns for file in out.glob(f"runs/*/{WEIGHTS}")}
    kept = [one for one in ROWS if one["label"] != "explodes"]

    def again(rows: list[dict[str, Any]]) -> dict[str, Any]:
        calls.clear()
        again = small_world / "again"
        plan = plan_ablation(grid(small_world / "base.yaml", rows=rows), again, runs=out / "runs", jobs=1)
        return run_ablation(plan, again)

    again(kept)
    assert calls == ["sphere", "sphere, greedy", "no sphere"]  # another folder, the same runs
    repeated = again(kept)
    assert calls == []
    for one in repeated["rows"]:
        assert one["values"] == row(results, one["label"])["values"]
    again([{"label": "eta", "sample": {"eta": 0.0}}, *kept, {"label": "a copy"}])
    assert calls == ["eta"]  # the copy of "sphere" is what it is
    for record in (out / "runs" / "points").glob("*.json"):
        record.write_text(record.read_text()[:40])
    again(kept[:1])
    assert calls == ["sphere"]
    assert {file: file.stat().st_mtime_ns for file in out.glob(f"runs/*/{WEIGHTS}")} == before


def test_grids_that_share_their_runs_share_samples(
    finished: tuple[Path, dict[str, Any]], small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row is in both grids, and drawn once; each grid finds its pictures from its own folder, be that a link."""
    weights = Path(row(finished[1], "sphere")["cells"][0]["training"]["run"]) / WEIGHTS
    calls = measured(monkeypatch)
    shared, one, two = (small_world / name for name in ("shared", "one", "two"))
    (small_world / "deep" / "er").mkdir(parents=True)
    two.symlink_to(small_world / "deep" / "er")

    def ablated(out: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
        asked = grid(weights, base=None, weights=str(weights), rows=rows, published=None)
        results = run_ablation(plan_ablation(asked, out, runs=shared, jobs=1), out)
        assert all((out / figure).is_file() for figure in results["figures"])
        return [found["cells"][0] for found in results["rows"]]

    (first,) = ablated(one, {"label": "plain"})
    second, greedy = ablated(
        two, {"label": "as before", "sample": {"eta": 0.99}}, {"label": "greedy", "sample": {"greedy_ratio": 1}}
    )
    assert calls == ["sphere", "sphere, greedy"]
    assert first["distance"] == second["distance"] != greedy["distance"]
    assert all(
        (out / cell["samples"] / "grid.png").is_file() for out, cell in ((one, first), (two, second), (two, greedy))
    )
    assert (one / first["samples"]).resolve() == (two / second["samples"]).resolve()
    kept = {path.parent.relative_to(small_world) for path in small_world.glob("*/points/*.json")}
    assert Path("shared/points") in kept and not {Path("one/points"), Path("two/points")} & kept


def test_two_grids_at_once_judge_a_point_once(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(row(finished[1], "sphere")["cells"][0]["training"]["run"]) / WEIGHTS
    point = Point("mind", weights, {"steps": 1, "cfg_scale": 1.0}, samples=6)
    opened, judged = Barrier(2, timeout=60), []
    judge_images, open_point = Judge.judge, Point.open

    def open_together(self: Point, device: str) -> Any:
        generator = open_point(self, device)
        opened.wait()
        return generator

    def counted(self: Judge, *args: Any) -> dict[str, Any]:
        judged.append(self)
        return judge_images(self, *args)

    monkeypatch.setattr(Point, "open", open_together)
    monkeypatch.setattr(Judge, "judge", counted)
    judge = Judge("fashion:test", 8, "fashion-classifier")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: point.measure(judge, tmp_path), range(2))
    assert first == second and len(judged) == 1


def test_images_that_depend_on_their_batch_are_kept_apart(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU takes larger batches: what it draws then is another point, also in a folder that was begun without one."""
    weights = Path(row(finished[1], "sphere")["cells"][0]["training"]["run"]) / WEIGHTS
    point = Point("mind", weights, {"steps": 1, "cfg_scale": 1.0, "noise": "released"}, samples=6)
    judge = Judge("fashion:test", 8, "fashion-classifier")
    images = []
    for size in (4, 6):
        monkeypatch.setattr(MindGenerator, "batch_size", size)
        images.append(point.measure(judge, tmp_path)["images"])
    assert images[0] != images[1]


def test_a_row_that_cannot_be_sampled_costs_no_other(
    finished: tuple[Path, dict[str, Any]], small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid without training, two seeds; drawing fails for one of four."""
    weights = Path(row(finished[1], "sphere")["cells"][0]["training"]["run"]) / WEIGHTS
    rows = [{"label": "a"}, {"label": "b", "sample": {"schedule": "cosine"}}]
    asked = grid(weights, base=None, weights=str(weights), rows=rows, published=None)
    plan = plan_ablation(asked, small_world / "sampled", seeds=2, jobs=1)

    def failing(generator: Any, *args: Any, **kwargs: Any) -> Any:
        if generator.settings.schedule == "cosine" and kwargs["seed"] == 1:
            raise RuntimeError("the disk\nis full")
        return generate(generator, *args, **kwargs)

    monkeypatch.setattr(scoring, "generate", failing)
    found = run_ablation(plan, small_world / "sampled")
    a, b = found["rows"]
    assert [cell["error"] for cell in (*a["cells"], *b["cells"])] == [
        None,
        None,
        None,
        "RuntimeError: the disk is full",
    ]
    assert len(a["values"]["distance"]) == 2 and a["values"]["distance"][0] != a["values"]["distance"][1]
    assert a["values"]["train loss"] == [] and not (small_world / "sampled" / "runs").exists()
    assert "figures/norms.png" not in found["figures"]


def test_mistakes_before_anything_is_trained(small_world: Path) -> None:
    base = small_world / "base.yaml"
    with pytest.raises(UserError, match="seeds must be at least 1, got 0"):
        plan_ablation(grid(base), small_world / "x", seeds=0)
    with pytest.raises(UserError, match=r"there is no .*configuration absent\.yaml"):
        plan_ablation(grid(Path("absent.yaml")), small_world / "x")
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist"):
        plan_ablation(grid(base, base=None, weights="absent.safetensors", rows=[{"label": "a"}]), small_world / "x")
    assert not (small_world / "x").exists()


# --- command ----------------------------------------------------------------------------------------------------------


def test_command_prints_json_alone_and_exits_with_1_when_a_row_failed(
    finished: tuple[Path, dict[str, Any]], small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = finished
    monkeypatch.setattr(study_training, "_start", lambda *args: Finished())  # "explodes" fails again, as its log says
    monkeypatch.chdir(small_world)
    content = grid(small_world / "base.yaml").model_dump(exclude_none=True)
    Path("my grid.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    found = CliRunner().invoke(
        app, ["ablate", "my grid.yaml", "--device", "cpu", "--runs", str(out / "runs"), "--json"]
    )
    assert found.exit_code == 1, found.output
    printed = json.loads(found.stdout)
    assert [one["values"] for one in printed["rows"]] == [one["values"] for one in results["rows"]]
    assert "runs/ablate-my-grid/table.md" in found.stderr and Path("runs/ablate-my-grid/table.csv").is_file()


def test_printed_table_is_plain_text(finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    print_ablation(finished[1])
    printed = capsys.readouterr().out
    assert "failed: explodes" in printed and "published: FID" in printed
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hypersphere", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["hypersfere"], "unknown ablation 'hypersfere'. Did you mean hypersphere"),
        (["schedules", "--set", "sample.stepz=3"], "sampler settings: unknown key 'stepz'"),
        (["hypersphere", "--set", "train.optimiser.stepz=3"], "stepz"),
        (["schedules", "--set", "extractor=fashion-clasifier"], "Did you mean fashion-classifier"),
        (["schedules", "--set", "train.seed=3"], "would train, but the grid samples from weights"),
    ],
)
def test_command_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["ablate", *arguments])
    assert found.exit_code == 2 and found.stdout == ""
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", found.stderr), found.stderr
    assert not os.listdir(tmp_path)
