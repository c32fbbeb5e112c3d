"""The analysis pipeline: what it writes, reuse and resume, refusals, subsets, figures that fail, and how results read."""

import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentlab import ArrayLatents, Estimate, Latents, Measurement, MetricCard, UserError, analysis_figures, open_data
from latentlab import registry as registry_module
from latentlab.analyze import Subject, analyze, subject_of_folder, subject_of_tokenizer
from latentlab.finished import FinishedSteps
from latentlab.registry import measurement
from latentlab.report_table import print_results, write_summary
from latentlab.results import RESULTS_SCHEMA_VERSION, Results
from latentlab.subset import LatentSubset, limit_latents
from latentlab.tokenizers import build_tokenizer

TINY = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 4, "resolution": 32, "attn_resolutions": ()}

Toys = dict[str, list[int]]


def card(name: str, *needs: str) -> MetricCard:
    return MetricCard(name, name.title(), "A toy.", "-", "", "any", "lower", "this test", needs)


def found(name: str, latents: Latents, value: float, **more: object) -> Measurement:
    return Measurement(name, "toy", value, (value - 1, value + 1), "lower", "", latents.n, **more)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Toys:
    """Register toy measurements instead of the real ones; note the seed of every call by name."""
    seen: Toys = {"level": [], "spread": [], "masked": [], "picky": []}

    @measurement(card("level"))
    def level(latents: Latents, *, seed: int = 0) -> Measurement:
        seen["level"].append(seed)
        return found("level", latents, float(latents.moments.mean.mean()), companions={"level@2": Estimate(2.0)})

    @measurement(card("spread"))
    def spread(latents: Latents, *, factor: float = 2.0) -> Measurement:
        seen["spread"].append(0)
        return found("spread", latents, factor, warnings=("a warning",), details={"curve": np.arange(3.0)})

    @measurement(card("masked", "masks"))
    def masked(latents: Latents) -> Measurement:
        seen["masked"].append(0)
        return found("masked", latents, float(latents.masks(slice(None)).double().mean()))

    @measurement(card("picky"))
    def picky(latents: Latents) -> Measurement:
        seen["picky"].append(0)
        raise UserError("picky needs at least 1,000,000 images")

    module = ModuleType("toy_measurements")
    for function in (level, spread, masked, picky):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "toy_measurements", module)
    monkeypatch.setattr(registry_module, "_locations", lambda: {name: f"toy_measurements:{name}" for name in seen})
    return seen


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep figures quick: UMAP gets fewer points than it needs, so that it refuses before it compiles for many seconds."""
    monkeypatch.setattr(analysis_figures, "UMAP_POINTS", 10)
    monkeypatch.setattr(analysis_figures, "SHOWN_IMAGES", 2)


def latents(n: int = 40, offset: float = 0.0, masks: bool = False) -> ArrayLatents:
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(n, 4, 4, 4, generator=rng) + offset
    return ArrayLatents(values, labels=np.arange(n) % 4, masks=torch.ones(n, 4, 4) if masks else None)


def subject(**options: object) -> Subject:
    return Subject(latents(**options), Path("nowhere"))


def test_everything_is_written(calls: Toys, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    results = analyze(subject(), out, seed=5, command="latentlab analyze")
    written = json.loads((out / "results.json").read_text())
    assert written == results.to_dict()
    assert written["schema_version"] == RESULTS_SCHEMA_VERSION and written["seed"] == 5
    assert written["command"] == "latentlab analyze" and written["device"] == "cpu"
    assert written["latents"] == {"path": "nowhere", "fingerprint": latents().fingerprint, "n": 40, "shape": [4, 4, 4]}
    assert {"torch", "numpy"} <= set(written["environment"]["versions"])
    assert [m["name"] for m in written["measurements"]] == ["level", "spread"]
    assert written["measurements"][1]["details"] == {"curve": [0.0, 1.0, 2.0]}
    assert written["measurements"][0]["provenance"]["latents"] == latents().fingerprint
    assert written["refused"]["masked"].endswith("needs masks, and these latents have none")
    assert written["refused"]["picky"] == "picky needs at least 1,000,000 images"
    assert calls["level"] == [5]  # the seed reaches the measurement that has one
    assert sorted(p.name for p in (out / "measurements").iterdir()) == ["level.json", "spread.json"]
    assert "| level |" in (out / "summary.md").read_text()


def test_second_run_reuses_and_a_change_is_noticed(
    calls: Toys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = analyze(subject(), tmp_path)
    again = analyze(subject(), tmp_path)
    assert len(calls["level"]) == len(calls["spread"]) == 1
    assert again.reused == ("level", "spread") and again.measurements == first.measurements
    assert "reused, as nothing has changed since the last run: level, spread" in capsys.readouterr().err
    changed = analyze(subject(offset=1.0), tmp_path)
    assert not changed.reused and changed.measurements[0].value != first.measurements[0].value
    assert "again, as the input has changed" in capsys.readouterr().err
    assert analyze(subject(offset=1.0), tmp_path, seed=1).reused == (
        "spread",
    )  # level depends on the seed, spread does not


def test_changed_parameter_default_or_version_is_noticed(
    calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze(subject(), tmp_path)
    spread = sys.modules["toy_measurements"].spread
    monkeypatch.setitem(spread.__kwdefaults__, "factor", 3.0)
    results = analyze(subject(), tmp_path)
    assert results.reused == ("level",) and results.measurements[1].value == 3.0
    monkeypatch.setattr("latentlab.analyze.__version__", "another")
    assert analyze(subject(), tmp_path).reused == ()


def test_interrupted_analysis_continues(calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(latents: Latents) -> Measurement:
        raise KeyboardInterrupt

    whole = sys.modules["toy_measurements"].spread
    interrupt.card = whole.card  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.modules["toy_measurements"], "spread", interrupt)
    with pytest.raises(KeyboardInterrupt):
        analyze(subject(), tmp_path)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(sys.modules["toy_measurements"], "spread", whole)
    results = analyze(subject(), tmp_path)
    assert results.reused == ("level",) and len(calls["level"]) == len(calls["spread"]) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', "\x00\xff"])
def test_damaged_measurement_is_made_again(content: str, calls: Toys, tmp_path: Path) -> None:
    analyze(subject(), tmp_path)
    (tmp_path / "measurements" / "level.json").write_text(content)
    assert analyze(subject(), tmp_path).reused == ("spread",)
    assert analyze(subject(), tmp_path).reused == ("level", "spread")


def test_full_disk_is_not_taken_for_a_refusal(calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(FinishedSteps, "put", full)
    with pytest.raises(UserError, match="No space left"):
        analyze(subject(), tmp_path)


def test_named_measurements_only_once_each(calls: Toys, tmp_path: Path) -> None:
    results = analyze(subject(), tmp_path, metrics=["spread", "spread"])
    assert [m.name for m in results.measurements] == ["spread"] and not results.refused and not calls["level"]
    with pytest.raises(UserError, match=r"unknown measurement 'levl'.* Did you mean level\? Available: level, masked"):
        analyze(subject(), tmp_path, metrics=["levl"])
    with pytest.raises(UserError, match="no measurement is named"):
        analyze(subject(), tmp_path, metrics=[])


def test_plugin_that_cannot_be_imported_does_not_stop_the_others(
    calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"level": "toy_measurements:level", "lost": "no_such_module:lost"}
    monkeypatch.setattr(registry_module, "_locations", lambda: places)
    results = analyze(subject(), tmp_path)
    assert [m.name for m in results.measurements] == ["level"] and "cannot be imported" in results.refused["lost"]


def test_non_finite_latents_end_the_analysis(calls: Toys, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    values = torch.randn(12, 4, 2, 2)
    values[[3, 7], 0] = torch.nan
    save_file({"latents": values, "labels": torch.arange(12)}, folder / "latents_rank00_shard000.safetensors")
    with pytest.raises(UserError, match=r"2 of 12 latents contain NaN or infinity \(first: image 3\)"):
        analyze(subject_of_folder(folder), tmp_path / "out")
    assert not any(calls.values())


def test_file_in_the_way(calls: Toys, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out is a file"):
        analyze(subject(), tmp_path / "out")


def test_folder_of_latents_with_a_limit(calls: Toys, tmp_path: Path) -> None:
    values = torch.randn(40, 4, 2, 2)
    save_file({"latents": values, "labels": torch.arange(40) // 10}, tmp_path / "latents_rank00_shard000.safetensors")
    assert subject_of_folder(tmp_path).latents.n == 40
    part = subject_of_folder(tmp_path, limit=8, seed=1).latents
    assert np.bincount(part.labels).tolist() == [2, 2, 2, 2]
    assert part.fingerprint != subject_of_folder(tmp_path, limit=8, seed=2).latents.fingerprint
    assert analyze(subject_of_folder(tmp_path, limit=8), tmp_path / "out").latents["n"] == 8
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        subject_of_folder(tmp_path, limit=0)
    with pytest.raises(UserError, match="is not a folder"):
        subject_of_folder(tmp_path / "missing")


def test_subset_is_what_copying_would_give() -> None:
    whole = latents(masks=True)
    rows = np.array([1, 4, 5, 30])
    part = LatentSubset(whole, rows)
    assert torch.equal(part.take(slice(None)), whole.take(rows)) and np.array_equal(part.labels, whole.labels[rows])
    assert torch.equal(torch.cat(list(part.batches(3))), whole.take(rows))
    assert torch.equal(part.take(np.array([2, 0])), whole.take(np.array([5, 1])))
    assert torch.equal(part.masks(slice(1, 3)), whole.masks(np.array([4, 5])))
    copied = ArrayLatents(whole.take(rows))
    assert torch.allclose(part.moments.mean, copied.moments.mean) and torch.allclose(
        part.moments.std, copied.moments.std
    )
    assert limit_latents(whole, 40, 0) is whole


def test_changed_masks_are_noticed(calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    tokenizer, images = build_tokenizer(TINY), open_data("fashion:test", limit=12)
    true_masks = images.masks
    first = analyze(subject_of_tokenizer(tokenizer, images), tmp_path / "out", metrics=["masked"])
    images.masks = lambda indices: ~true_masks(indices)  # type: ignore[method-assign]
    images.fingerprint = "other masks"
    second = analyze(subject_of_tokenizer(tokenizer, images), tmp_path / "out", metrics=["masked"])
    assert second.measurements[0].value == pytest.approx(1 - first.measurements[0].value)


def test_images_and_tokenizer_are_on_record_and_drawn(
    calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    tokenizer, images = build_tokenizer(TINY, name="toy"), open_data("fashion:test", limit=12)
    results = analyze(subject_of_tokenizer(tokenizer, images), tmp_path / "out")
    assert results.title == "toy on fashion:test" and results.tokenizer["name"] == "toy"
    assert results.data == {"name": "fashion:test", "fingerprint": images.fingerprint, "n": 12}
    assert results.figures == ("figures/reconstructions.png", "figures/reconstructions.svg")
    assert all((tmp_path / "out" / file).stat().st_size > 1000 for file in results.figures)
    assert "figure umap: not drawn: UMAP with n_neighbors=15 needs more than 15 latents" in results.notes[0]
    assert "![reconstructions](figures/reconstructions.png)" in (tmp_path / "out" / "summary.md").read_text()


def test_failing_figure_leaves_the_results_and_a_note(
    calls: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> list[Path]:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("figures.analysis.draw_all", broken)
    results = analyze(subject(), tmp_path)
    assert "figure measurements: not drawn: no fonts" in results.notes and len(results.measurements) == 2
    assert json.loads((tmp_path / "results.json").read_text())["notes"] == list(results.notes)


def test_figures_of_an_earlier_input_do_not_stay(calls: Toys, tmp_path: Path) -> None:
    drawn, own = tmp_path / "figures" / "viv_curve.png", tmp_path / "figures" / "mine.png"
    analyze(subject(), tmp_path)
    drawn.parent.mkdir(exist_ok=True)
    drawn.touch(), own.touch()
    written = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(
        json.dumps({**written, "figures": ["figures/viv_curve.png", "../summary.md"]})
    )
    analyze(subject(offset=1), tmp_path)
    assert not drawn.exists() and own.exists() and (tmp_path / "summary.md").exists()


def some_results(**changes: object) -> Results:
    plain = Measurement("viv", "class-conditional | mean", 0.61234, (0.6, 0.625), "lower", "", 10_000)
    lnc = Measurement(
        "lnc", "cosine", 0.8, None, "higher", "", 9000, companions={"LNC@10": Estimate(0.75, (0.7, 0.8))},
        warnings=("1 class of 10 was left out",),
    )  # fmt: skip
    fields = {
        "tokenizer": {"name": "[red]ibq"},
        "data": {"name": "fashion:test", "fingerprint": "f", "n": 10_000},
        "latents": {"path": "p", "fingerprint": "f", "n": 10_000, "shape": [8, 8, 8]},
        "seed": 0,
        "device": "cpu",
        "measurements": (plain, lnc),
        "refused": {"srss": "needs masks"},
        "skipped_images": ("a.png", "b.png"),
    }
    return Results(**{**fields, **changes})  # type: ignore[arg-type]


def test_table_is_plain_text_when_nobody_watches() -> None:
    file = io.StringIO()
    print_results(some_results(), file)
    text = file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert "[red]ibq on fashion:test: 10,000 latents of 8 x 8 x 8" in text
    rows = [
        [cell.strip() for cell in re.split("[│|]", line)[1:-1]]
        for line in text.splitlines()
        if "viv" in line or "LNC" in line
    ]
    assert rows[0][:5] == ["viv", "0.6123", "0.6 .. 0.625", "lower", "10,000"]
    assert rows[1][:3] == ["LNC@10", "0.75", "0.7 .. 0.8"]
    for remark in (
        "lnc: 1 class of 10 was left out",
        "srss: not measured: needs masks",
        "2 unreadable images were left out",
    ):
        assert remark in text


def test_table_has_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    print_results(some_results(), terminal)
    assert "\x1b[" in terminal.getvalue()


def test_summary_is_valid_markdown(tmp_path: Path) -> None:
    write_summary(some_results(figures=("figures/umap.png", "figures/umap.svg")), tmp_path)
    text = (tmp_path / "summary.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1  # a | in a cell is escaped
    assert text.count("![umap](figures/umap.png)") == 1 and "umap.svg" not in text


def test_infinite_values_read_as_absent() -> None:
    file = io.StringIO()
    endless = Measurement("viv", "toy", float("nan"), None, "none", "", 3)
    print_results(some_results(measurements=(endless,)), file)
    assert re.search(r"viv +[│|] +- +[│|] +- +[│|] - ", file.getvalue())
