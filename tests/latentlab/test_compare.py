"""Comparisons: paired tests against scipy and simulation, what must not be compared, and what a user reads."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analyses.intervals import bootstrap_means, percentile_interval
from latentlab import ArrayLatents, Measurement, UserError
from latentlab.analyze import Subject
from latentlab.compare import compare, p_value
from latentlab.compare_report import as_csv, legend, print_comparison
from latentlab.comparison_run import compare_subjects, same_images

RNG = np.random.default_rng(0)


def mean_of(values: np.ndarray, name: str = "lds", direction: str = "higher", **more: object) -> Measurement:
    replicates = bootstrap_means(values, 0)
    interval = percentile_interval(replicates)
    facts = {"n": len(values), "replicates": replicates, **more}
    return Measurement(name, "v", float(values.mean()), interval, direction, "unit", **facts)


def test_paired_test_equals_the_paired_t_test() -> None:
    first = RNG.normal(size=300)
    second = first + RNG.normal(0.02, 0.1, size=300)
    (found,) = compare({"a": [mean_of(first)], "b": [mean_of(second)]}, paired=True).differences
    expected = stats.ttest_rel(first, second)
    assert found.value == pytest.approx(np.mean(first - second)) and found.paired
    assert np.log(found.p) == pytest.approx(np.log(expected.pvalue), abs=0.7)
    assert found.interval == pytest.approx(expected.confidence_interval(), abs=0.002)


def test_unpaired_test_is_welchs_and_blunter() -> None:
    first = RNG.normal(size=300)
    second = first + 0.05
    sharp, blunt = (
        compare({"a": [mean_of(first)], "b": [mean_of(second)]}, paired=paired).differences[0]
        for paired in (True, False)
    )
    assert sharp.p < 1e-6 and not blunt.paired
    assert blunt.p == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue, abs=0.05)


def test_few_units_get_a_wider_test() -> None:
    """Ten classes: Student's t with 9 degrees of freedom and the unbiased deviation, as the paired t-test has."""
    first = RNG.normal(size=10)
    second = first + RNG.normal(0.5, 0.5, size=10)
    column = {k: [mean_of(v, units=10)] for k, v in (("a", first), ("b", second))}
    (found,) = compare(column, paired=True).differences
    assert np.log(found.p) == pytest.approx(np.log(stats.ttest_rel(first, second).pvalue), abs=0.5)


def test_false_alarms_are_as_rare_as_announced() -> None:
    """200 comparisons of four tokenizers without any difference: Holm keeps a family's alarms near 5 %."""
    alarms = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        common = rng.normal(size=100)
        column = {name: [mean_of(common + rng.normal(size=100))] for name in "abcd"}
        alarms += any(d.significant for d in compare(column, paired=True).differences)
    assert alarms <= 20


def test_no_spread_is_certain_either_way() -> None:
    assert p_value(0.0, 0.0, 10) == 1 and p_value(0.1, 0.0, 10) == 0


def test_standing_follows_the_direction() -> None:
    base = RNG.normal(size=500)
    noise = RNG.normal(0, 0.3, 500)
    values = {"a": base, "b": base + noise - noise.mean() + 1e-3, "c": base + 3}
    for direction, best, worst in (("lower", "a", "c"), ("higher", "c", "a")):
        column = {name: [mean_of(v, direction=direction)] for name, v in values.items()}
        standing = compare(column, paired=True).standing("lds")
        assert standing[best] == "best" and standing[worst] == "worse"
        assert standing["b"] == ("level" if best == "a" else "worse")
    neutral = {name: [mean_of(v, direction="none")] for name, v in values.items()}
    assert compare(neutral, paired=True).standing("lds") == {}


def test_other_variants_and_biased_values_at_other_n_do_not_compare() -> None:
    long, short = mean_of(RNG.normal(size=300), "viv", "lower"), mean_of(RNG.normal(size=200), "viv", "lower")
    refused = compare({"a": [long], "b": [short]}, paired=False).refused["viv"]
    assert "200, 300" in refused and "use --limit 200" in refused
    other = Measurement("viv", "raw", 1.0, None, "lower", "", 300)
    found = compare({"a": [long], "b": [other]}, paired=True)
    assert (
        "different variants: raw; v" in found.refused["viv"] and not found.differences and found.standing("viv") == {}
    )


def test_biased_values_of_other_class_counts_do_not_compare() -> None:
    values = RNG.normal(size=300)
    few, many = (mean_of(values, "lnc", details={"per_class": dict.fromkeys(range(k), 0.5)}) for k in (3, 10))
    assert "different numbers of classes (3, 10)" in compare({"a": [few], "b": [many]}, paired=False).refused["lnc"]


def test_the_legend_says_how_differences_were_tested() -> None:
    columns = {name: [mean_of(RNG.normal(size=300))] for name in "ab"}
    assert "(paired bootstrap" in legend(compare(columns, paired=True))
    assert "by itself, as they are not known to be of the same images" in legend(compare(columns, paired=False))


def test_without_replicates_nothing_is_tested() -> None:
    bare = [Measurement("gmm", "v", k, None, "lower", "", 10) for k in (1.0, 2.0)]
    found = compare({"a": [bare[0]], "b": [bare[1]]}, paired=True)
    assert found.differences[0].p is None and found.standing("gmm") == {"a": "best"}


def test_one_tokenizer_is_no_comparison() -> None:
    with pytest.raises(UserError, match="at least two"):
        compare({"a": []}, paired=True)


def subjects(n: int = 120) -> dict[str, Subject]:
    labels = np.arange(n) % 3
    made = {}
    for name, smooth in (("rough", 0.0), ("smooth one", 3.0)):
        z = np.random.default_rng(1).normal(size=(n, 4, 4, 4)) + smooth * np.linspace(-1, 1, 4)[:, None]
        made[name] = Subject(ArrayLatents(z.astype(np.float32), labels), Path(name))
    return made


def test_run_writes_table_figures_and_every_number(tmp_path: Path) -> None:
    out = tmp_path / "a comparison"
    found = compare_subjects(subjects(), out, title="two", metrics=["sec", "lnc"])
    assert found.standing("sec")["smooth one"] == "best"
    written = json.loads((out / "comparison.json").read_text())
    assert written["names"] == ["rough", "smooth one"] and len(written["differences"]) == 2
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert {(row["measurement"], row["companion"]) for row in rows} >= {
        ("sec", ""),
        ("sec", "SEC@0.25"),
        ("lnc", "LNC@10"),
    }
    summary = (out / "summary.md").read_text()
    assert "| sec | lower |" in summary and "rough - smooth one" in summary
    assert {file.name for file in (out / "figures").glob("*.png")} >= {"parallel_coordinates.png", "measurements.png"}
    assert (out / "smooth-one" / "results.json").exists()


def test_second_run_reuses_the_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = compare_subjects(subjects(), tmp_path, title="two", metrics=["sec"])
    capsys.readouterr()
    second = compare_subjects(subjects(), tmp_path, title="two", metrics=["sec"])
    assert second.to_dict() == first.to_dict()
    assert capsys.readouterr().err.count("reused") == 2


def test_gmms_are_brought_to_one_dimension(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = {}
    for name, scales in (("flat", [1, 1e-3, 1e-3, 1e-3]), ("round", [1, 1, 1, 1])):
        z = rng.normal(size=(300, 4, 1, 1)) * np.array(scales)[:, None, None]
        made[name] = Subject(ArrayLatents(z.astype(np.float32)), Path(name))
    found = compare_subjects(made, tmp_path, title="two", metrics=["gmm"], options={"gmm": {"components": (1, 2)}})
    dims = {m["gmm"].details["dims"] for m in found.measurements.values()}
    assert dims == {4} and not found.refused


def test_images_are_the_same_when_their_labels_are() -> None:
    first, second = subjects().values()
    assert same_images([first, second])
    z = np.zeros((120, 4, 4, 4), np.float32)
    assert not same_images([first, Subject(ArrayLatents(z, np.zeros(120)), Path("x"))])
    assert not same_images([first, Subject(ArrayLatents(z), Path("x"))])


def test_printed_table_marks_the_easiest() -> None:
    base = RNG.normal(size=400)
    column = {"a": [mean_of(base, "sec", "lower")], "b": [mean_of(base + 1, "sec", "lower")]}
    text = io.StringIO()
    comparison = compare(column, paired=True)
    print_comparison(comparison, "two", text)
    assert legend(comparison) in text.getvalue() and "(paired bootstrap, Holm, 5%)" in text.getvalue()
    (row,) = [line for line in text.getvalue().splitlines() if line.startswith("│ sec")]
    assert row.split("│")[3].rstrip().endswith("*") and not row.split("│")[4].rstrip().endswith("*")
    assert as_csv(compare(column, paired=True)).splitlines()[1].startswith("sec,,a,")
