"""``latentlab correlate``: any CSV, what it writes and prints, and one line and exit code 2 for every bad table."""

import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from latentlab.cli.correlate import correlate
from latentlab.cli.main import _Commands
from latentlab.study.analysis.brought_csv import read_any
from latentlab.study.table import StudyTable

from ..study.example_study import example_study

app = typer.Typer(cls=_Commands)
app.command("correlate")(correlate)
app.callback()(lambda: None)


def results(n: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ease = rng.uniform(size=n)
    return pd.DataFrame(
        {
            "name": [f"t{i}" for i in range(n)],
            "cluster": np.array(["base", "eq", "repa"])[np.arange(n) % 3],
            "viv": 2 - ease,
            "lnc.k5": ease + 0.1 * rng.normal(size=n),
            "rfd": rng.uniform(size=n),
            "gfid": 30 - 20 * ease + rng.normal(size=n),
        }
    )


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "results.csv"
    results().to_csv(path, index=False)
    return path


def run(*words):
    return CliRunner().invoke(app, ["correlate", *map(str, words)])


def test_any_csv(table, tmp_path):
    done = run(table, "--target", "gfid", "--family", "cluster", "--given", "rfd")
    assert done.exit_code == 0, done.stderr
    assert "viv" in done.stdout and "pearson given" not in done.stdout and "r given rfd" in done.stdout
    rows = pd.read_csv(tmp_path / "correlations.csv")
    frame = results()
    viv = rows[(rows.predictor == "viv") & (rows.method == "pearson") & rows.covariates.isna() & rows.within.isna()]
    assert viv["value"].item() == pytest.approx(np.corrcoef(frame.viv, frame.gfid)[0, 1])
    assert set(rows.predictor) == {"viv", "lnc.k5"}
    assert set(rows.within.dropna()) == {"cluster"}
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    assert {one["scheme"] for one in analysis["prediction"]} == {"leave_one_out", "leave_cluster_out"}
    assert analysis["prediction"][0]["rows"][1]["cluster"] == "eq"


def test_json_and_out(table, tmp_path):
    done = run(
        table, "--target", "gfid", "--predictors", "viv", "--method", "spearman", "--json", "--out", tmp_path / "new"
    )
    assert done.exit_code == 0, done.stderr
    (record,) = json.loads(done.stdout)["correlations"]
    assert (record["predictor"], record["method"], record["guidance"]) == ("viv", "spearman", None)
    assert (tmp_path / "new" / "analysis.json").exists() and not (tmp_path / "analysis.json").exists()


def test_held_out_and_models(table):
    done = run(table, "--target", "gfid", "--held-out", "t0,t5", "--model", "viv,rfd", "--json")
    analysis = json.loads(done.stdout)
    assert analysis["correlations"][0]["n"] == 10
    found = [
        one for one in analysis["prediction"] if one["predictors"] == ["viv", "rfd"] and one["scheme"] == "held_out"
    ]
    assert [row["tokenizer"] for row in found[0]["rows"]] == ["t0", "t5"]


def test_a_study_follows_its_plan(tmp_path):
    example_study(tokenizers=12, generators=("sit",)).write(tmp_path)
    (tmp_path / "plan.yaml").write_text(
        "title: x\nanalysis: {targets: [held_out_loss], predictors: [m_viv], covariates: [psnr]}\n"
    )
    for place in (tmp_path, tmp_path / "results.csv"):
        found = json.loads(run(place, "--method", "pearson", "--json").stdout)["correlations"]
        assert {one["target"] for one in found} == {"held_out_loss"} and {one["guidance"] for one in found} == {
            1,
            1.5,
            2,
        }
        assert {tuple(one["covariates"]) for one in found} == {(), ("psnr",)}
    again = json.loads(run(tmp_path, "--target", "gfd_fashion_classifier", "--method", "pearson", "--json").stdout)
    assert {one["target"] for one in again["correlations"]} == {"gfd_fashion_classifier"}
    wrong = run(tmp_path, "--target", "gfd_fashion_classifier,gfd_fashion_clasifier")
    assert wrong.exit_code == 2 and "unknown column 'gfd_fashion_clasifier'" in wrong.stderr


def test_settings_and_repeats_of_a_csv(tmp_path):
    frame = pd.concat([results().assign(generator=g, guidance=1.5, generator_seed=s) for g in "ab" for s in (0, 1)])
    frame["gfid"] += np.random.default_rng(1).normal(size=len(frame))
    frame.to_csv(tmp_path / "r.csv", index=False)
    found = json.loads(run(tmp_path / "r.csv", "--target", "gfid", "--predictors", "viv", "--json").stdout)
    assert [one["generator"] for one in found["correlations"] if one["method"] == "pearson"] == ["a", "b"]
    assert len(found["noise"]) == 2 and len(found["stability"]) == 1 and found["correlations"][0]["n"] == 12


def test_rows_without_names_are_called_by_their_line(tmp_path):
    results().drop(columns=["name", "cluster"]).to_csv(tmp_path / "r.csv", index=False)
    study = read_any(tmp_path / "r.csv", ["gfid"])
    assert isinstance(study, StudyTable) and list(study.rows["tokenizer"][:2]) == ["line 2", "line 3"]


def change(column, row, value):
    def changed():
        frame = results().astype(object)
        frame.loc[row, column] = value
        return frame

    return changed


BAD = {
    "too few": (lambda: results(4), [], "at least 5 tokenizers"),
    "target is constant": (lambda: results().assign(gfid=3.0), [], "constant"),
    "everything is constant": (lambda: results().assign(viv=1.0), ["--predictors", "viv"], "constant"),
    "a tokenizer twice": (change("name", 3, "t0"), [], "holds tokenizer 't0' 2 times"),
    "words in a column": (change("gfid", 2, "abc"), [], "'abc'"),
    "a typo in a column nobody names": (change("viv", 2, "1,9"), [], "'1,9' in column viv, line 4"),
    "an infinite value": (change("viv", 2, np.inf), [], "infinite"),
    "a family missing": (change("cluster", 2, None), ["--family", "cluster"], "no cluster in line 4"),
    "all targets missing": (lambda: results().assign(gfid=np.nan), [], "got 0"),
    "no such target": (results, ["--target", "fid"], "Did you mean gfid"),
    "no such predictor": (results, ["--predictors", "vib"], "Did you mean viv"),
    "no such covariate": (results, ["--given", "psnr"], "unknown column 'psnr'"),
    "no such family": (results, ["--family", "arch"], "'arch'"),
    "no such label": (results, ["--label", "id"], "'id'"),
    "target among predictors": (results, ["--predictors", "gfid,viv"], "cannot explain itself"),
    "twice the same": (results, ["--predictors", "viv,viv"], "names viv twice"),
    "no such method": (results, ["--method", "cosine"], "--method"),
    "no such held-out": (results, ["--held-out", "t99"], "t99"),
    "held_out is not true or false": (lambda: results().assign(held_out="maybe"), [], "True or False"),
    "guidance in words": (lambda: results().assign(guidance="high"), [], "guidance must hold numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_give_one_line_and_2(case, tmp_path):
    make, words, message = BAD[case]
    make().to_csv(tmp_path / "results.csv", index=False)
    done = run(tmp_path / "results.csv", *([] if "--target" in words else ["--target", "gfid"]), *words)
    assert done.exit_code == 2, (done.stdout, done.stderr)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "analysis.json").exists()


@pytest.mark.parametrize("content", ["", "a,b\n", 'a,b\n1,2\n3,4,5\n"', "\x00\x01"])
def test_what_is_no_table(content, tmp_path):
    (tmp_path / "results.csv").write_text(content)
    done = run(tmp_path / "results.csv", "--target", "gfid")
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_no_file_and_no_target(tmp_path, table):
    for words, message in ((["nowhere.csv", "--target", "gfid"], "nowhere.csv"), ([table], "--target")):
        done = run(*words)
        assert done.exit_code == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("count", ["n", "n_samples"])
def test_doubts_are_printed(tmp_path, count):
    frame = results(8).assign(flat=1.0, **{count: [1000, *[5000] * 7]})
    frame.loc[2, "viv"] = np.nan
    frame.to_csv(tmp_path / "r.csv", index=False)
    done = run(tmp_path / "r.csv", "--target", "gfid")
    assert done.exit_code == 0, done.stderr
    for text in (
        "viv: 1 cells without a value, left out (t2)",
        f"{count} is 1000, 5000",
        "flat is the same",
        "only 7 points",
    ):
        assert text in done.stdout


def test_a_stated_predictor_that_no_tokenizer_has_is_left_out(tmp_path):
    """As after a study whose images have no masks: the plan names what the table then lacks."""
    example_study().write(tmp_path)
    stated = "analysis: {targets: [gfd_fashion_classifier], predictors: [m_viv, m_srss_of_masks]}"
    (tmp_path / "plan.yaml").write_text(stated)
    done = run(tmp_path)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "analysis.json").read_text())["plan"]["predictors"] == ["m_viv"]
