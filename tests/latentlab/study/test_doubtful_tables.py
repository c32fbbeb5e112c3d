"""Tables that must not give a number silently: words among numbers, infinities, copies, mixed sizes, an older analysis."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from latentlab.claims.diffusability import CLAIMS
from latentlab.claims.evidence import Evidence
from latentlab.errors import UserError
from latentlab.report.contents import read_contents
from latentlab.study.analysis.analyze import analyse, write_analysis
from latentlab.study.analysis.brought_csv import is_size, read_any
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.plots.inputs import StudyFolder
from latentlab.study.predictor.rows import choose
from latentlab.study.table import FILE, StudyTable

from .example_study import example_study

TARGET = "gfd_fashion_classifier"
PREDICTORS = AnalysisPlan(targets=(TARGET,), predictors=("m_viv", "m_lnc"), methods=("pearson",))


def changed(folder: Path, column: str, value: object, row: int = 3) -> Path:
    """Write the made-up study with one value in the place of another; return the file."""
    study = example_study()
    study.write(folder)
    rows = pd.read_csv(folder / FILE)
    rows[column] = rows[column].astype(object)
    rows.loc[row, column] = value
    rows.to_csv(folder / FILE, index=False)
    return folder / FILE


@pytest.mark.parametrize(
    ("column", "value"),
    [("m_viv", "n.a."), (TARGET, np.inf), ("guidance", "none"), ("generator_seed", "first"), ("m_lnc", -np.inf)],
)
def test_words_and_infinities_are_refused_with_their_line(column: str, value: object, tmp_path: Path) -> None:
    file = changed(tmp_path, column, value)
    with pytest.raises(UserError, match=rf"results.csv holds '.*' in column {column}, line 5, where a finite number"):
        StudyTable.read(file)


def with_copies(times: int = 3) -> StudyTable:
    """Return the made-up study with a tokenizer that is there under more names."""
    study = example_study()
    original = study.rows["tokenizer"].iloc[0]
    own = study.rows[study.rows["tokenizer"] == original]
    copies = [own.assign(tokenizer=f"copy-{i}") for i in range(times)]
    return StudyTable(pd.concat([study.rows, *copies], ignore_index=True), study.columns)


def test_copies_are_found_and_count_once() -> None:
    study, doubled = example_study(), with_copies()
    original = str(study.rows["tokenizer"].iloc[0])
    assert study.copies() == {} and doubled.copies() == {f"copy-{i}": original for i in range(3)}
    shuffled = StudyTable(doubled.rows.sample(frac=1, random_state=0), doubled.columns)
    assert len(shuffled.copies()) == 3
    generator, guidance = str(study.rows["generator"].iloc[0]), float(study.rows["guidance"].iloc[0])
    plain, chosen = (choose(table, TARGET, generator, guidance, None, ()) for table in (study, doubled))
    pd.testing.assert_frame_equal(chosen.fitted.reset_index(drop=True), plain.fitted.reset_index(drop=True))
    assert chosen.dropped["copy-0"] == f"a copy of {original}"


def verdicts(folder: Path) -> dict[str, object]:
    return {claim.id: claim.verdict(Evidence(folder)) for claim in CLAIMS if claim.id in ("C4", "C5")}


def test_claims_do_not_count_copies_and_do_not_judge_mixed_sizes(tmp_path: Path) -> None:
    example_study().write(tmp_path / "plain")
    with_copies(8).write(tmp_path / "copies")
    plain, copies = (verdicts(tmp_path / name) for name in ("plain", "copies"))
    for name, one in plain.items():
        assert (copies[name].n, copies[name].value) == (one.n, one.value)
        assert "is a copy of" in copies[name].why
    study = example_study()
    half = np.arange(len(study.rows)) % 2
    StudyTable(study.rows.assign(n_samples=np.where(half, 500, 5000)), study.columns).write(tmp_path / "mixed")
    for one in verdicts(tmp_path / "mixed").values():
        assert one.verdict == "undecided" and "n_samples is 500, 5000" in one.why


def test_nothing_is_predicted_from_mixed_sizes() -> None:
    study = example_study()
    mixed = study.rows.assign(n_samples=np.where(np.arange(len(study.rows)) % 2, 500, 5000))
    generator, guidance = str(study.rows["generator"].iloc[0]), float(study.rows["guidance"].iloc[0])
    with pytest.raises(UserError, match="n_samples is 500, 5000"):
        choose(StudyTable(mixed, study.columns), TARGET, generator, guidance, None, ())


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("n", [1000, 5000], True), ("N", [1000, 5000], True), ("n_images", [5000, 10000], True), ("NumSamples", [500, 500], True),
        ("num_fid", [500, 5000], True), ("n_fid_samples", [500, 5000], True), ("viv", [1000, 5000], False),
        ("n", [0.5, 0.25], False), ("n_parameters", [1000, 5000], False), ("channels", [4, 8], False),
    ],
)  # fmt: skip
def test_columns_of_sizes_are_known_by_name_and_whole_numbers(name: str, values: list[float], expected: bool) -> None:
    assert is_size(pd.Series(values, name=name)) is expected


def test_columns_of_others_as_people_write_them(tmp_path: Path) -> None:
    lines = [f" t{i},{i},{i * i},0,{int(i == 2)},{5000 if i else 500}" for i in range(8)]
    (tmp_path / "r.csv").write_text("\n".join(["name,viv,gfid,control,held_out,n_images", *lines]))
    table = read_any(tmp_path / "r.csv", ["gfid"])
    assert list(table.rows["tokenizer"][:2]) == ["t0", "t1"] and not table.rows["control"].any()
    assert list(np.flatnonzero(table.rows["held_out"])) == [2]
    found = analyse(table, AnalysisPlan(targets=("gfid",), predictors=table.names("measurement"), groups=()))
    assert found["plan"]["predictors"] == ["viv"] and any("n_images is 500, 5000" in text for text in found["warnings"])


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_is_named(mark: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(mark.join(["name", "viv", "gfid"]) + "\n" + mark.join(["a", "1", "2"]))
    with pytest.raises(UserError, match=r"separated by '(;|\\t)': save it with commas"):
        read_any(tmp_path / "r.csv", ["gfid"])


def test_an_analysis_of_an_earlier_table_is_left_out_and_told(tmp_path: Path) -> None:
    study = example_study()
    study.write(tmp_path)
    write_analysis(analyse(study, PREDICTORS), tmp_path / "analysis.json", tmp_path / FILE)
    (tmp_path / "claims.json").write_text(json.dumps([{"id": "C2", "table_sha256": "of another"}]))
    assert StudyFolder(tmp_path).held("correlations") and read_contents(tmp_path).analysis is not None
    assert any("claims.json is left out: it is of an earlier" in text for text in read_contents(tmp_path).problems)
    StudyTable(study.rows[5:], study.columns).write(tmp_path)
    with pytest.raises(UserError, match="is of an earlier table"):
        StudyFolder(tmp_path).held("correlations")
    contents = read_contents(tmp_path)
    assert contents.analysis is None
    assert any("analysis.json is left out: it is of an earlier results.csv" in text for text in contents.problems)


def test_families_are_left_out_as_clusters_are() -> None:
    study = example_study()
    families = StudyTable(
        study.rows.assign(family=np.where(study.rows["tokenizer"].str[-1].isin(list("02468")), "conv", "transformer")),
        study.columns,
    )
    schemes = {one["scheme"] for one in analyse(families, PREDICTORS)["prediction"]}
    assert {"leave_one_out", "leave_cluster_out", "leave_family_out"} <= schemes


def test_a_judge_that_has_not_judged_yet_costs_no_analysis() -> None:
    study = example_study()
    plan, absent = AnalysisPlan(targets=(TARGET, "gfd_later"), predictors=("m_viv",)).of_what_there_is(study)
    assert absent == ["gfd_later"] and plan.targets == (TARGET,)
    assert {one["target"] for one in analyse(study, plan)["correlations"]} == {TARGET}
    alone, absent = AnalysisPlan(targets=("gfd_later",), predictors=("m_viv",)).of_what_there_is(study)
    with pytest.raises(UserError, match="gfd_later"):
        analyse(study, alone)
    assert absent == []


def test_a_predictor_that_no_tokenizer_has_costs_no_analysis() -> None:
    study = example_study()
    plan, absent = AnalysisPlan(
        targets=(TARGET,), predictors=("m_viv", "m_absent"), models=(("m_viv", "m_absent"),)
    ).of_what_there_is(study)
    assert absent == ["m_absent"] and plan.predictors == ("m_viv",) and plan.models == ()
    assert analyse(study, plan)["correlations"]
