"""Tables of studies: written, read again, checked, averaged."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from latentlab.errors import UserError
from latentlab.report.points import points_of
from latentlab.study.table import FILE, Column, StudyTable, read_csv

from .example_study import example_study


def test_written_and_read_again(tmp_path):
    study = example_study(tokenizers=3)
    study.write(tmp_path)
    again = StudyTable.read(tmp_path)
    pd.testing.assert_frame_equal(again.rows, study.rows, check_dtype=False)
    assert again.columns == study.columns


def test_labels_that_look_like_numbers_or_nothing_stay_words(tmp_path):
    study = example_study(tokenizers=3, generators=("sit",))
    words = {"tokenizer-00": "8", "tokenizer-01": "16", "tokenizer-02": "None"}
    rows = study.rows.assign(
        tokenizer=study.rows["tokenizer"].map(words), cluster=study.rows["tokenizer"].map(words), generator="1"
    )
    StudyTable(rows, study.columns).write(tmp_path)
    read = StudyTable.read(tmp_path)
    for name in ("tokenizer", "cluster", "generator"):
        assert read.rows[name].tolist() == rows[name].tolist()
    assert read.rows["control"].tolist() == [""] * len(rows)


def test_tokenizers_of_which_nothing_is_known_are_no_copies():
    study = example_study(tokenizers=4)
    names = list(study.names("measurement", "quality"))
    rows = study.rows.copy()
    rows.loc[rows["tokenizer"] != "tokenizer-00", names] = np.nan
    assert StudyTable(rows, study.columns).copies() == {}
    rows.loc[rows["tokenizer"] == "tokenizer-02", names] = study.rows.loc[
        study.rows["tokenizer"] == "tokenizer-00", names
    ].to_numpy()
    assert StudyTable(rows, study.columns).copies() == {"tokenizer-02": "tokenizer-00"}


def test_roles_name_columns():
    study = example_study(tokenizers=3)
    assert study.names("measurement") == ("m_viv", "m_lnc", "m_srss", "m_cds")
    assert study.column("psnr").unit == "dB"
    with pytest.raises(UserError, match="Did you mean m_viv"):
        study.column("m_vib")


def test_seeds_are_averaged():
    study = example_study(tokenizers=4)
    means = study.by_tokenizer("sit", 1.5)
    assert list(means["tokenizer"]) == [f"tokenizer-{i:02d}" for i in range(4)]
    rows = study.rows
    chosen = rows[(rows.tokenizer == "tokenizer-02") & (rows.generator == "sit") & (rows.guidance == 1.5)]
    assert means["gfd_fashion_classifier"][2] == pytest.approx(np.mean(chosen["gfd_fashion_classifier"]))
    assert list(means["cluster"]) == ["baseline", "kl", "repa", "eq"]


def test_the_same_cell_twice_is_refused(tmp_path):
    study = example_study(tokenizers=3)
    StudyTable(pd.concat([study.rows, study.rows[:1]]), study.columns).write(tmp_path)
    with pytest.raises(UserError, match=r"the same cell more than once \(tokenizer tokenizer-00"):
        StudyTable.read(tmp_path)


@pytest.mark.parametrize("content", ["", "a,b\n", "\x00\xff"])
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=FILE):
        read_csv(tmp_path / FILE)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("name,viv,viv\na,1,2\n")
    with pytest.raises(UserError, match=r"results.csv has the column viv twice"):
        read_csv(tmp_path / "results.csv")


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no table .*results.csv"):
        StudyTable.read(tmp_path)


def test_a_table_of_something_else_is_refused(tmp_path):
    example_study(tokenizers=3).write(tmp_path)
    (tmp_path / FILE).write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="lacks the columns"):
        StudyTable.read(tmp_path)


@pytest.mark.parametrize(
    "told",
    [
        "5",
        '[{"name": 5, "role": "quality", "meaning": "x"}]',
        '[{"name": "x", "role": "nonsense", "meaning": ""}]',
        "[[]]",
    ],
)
def test_columns_that_are_not_explained_are_refused(tmp_path, told):
    example_study(tokenizers=3).write(tmp_path)
    (tmp_path / "columns.json").write_text(told)
    with pytest.raises(UserError, match=r"columns\.json does not explain columns"):
        StudyTable.read(tmp_path)


def test_wide_tables_are_used_without_warnings(tmp_path: Path) -> None:
    """Studies have more than 100 columns; pandas keeps those of a file apart and warns when others are added to many."""
    study = example_study()
    more = {f"m_{i}": np.arange(len(study.rows), dtype=float) for i in range(120)}
    wide = StudyTable(
        pd.concat([study.rows, pd.DataFrame(more)], axis=1),
        (*study.columns, *(Column(name, "measurement", "Made up.") for name in more)),
    )
    wide.write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.PerformanceWarning)
        read = StudyTable.read(tmp_path)
        assert len(read.by_tokenizer("sit", 1.0)) == 24 and len(points_of(read).rows) == 24 * 6
        read.rows["one more"] = 0
