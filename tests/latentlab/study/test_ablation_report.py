"""The table of an ablation from numbers that are chosen: what stands where, under which heading."""

import csv
import io
from typing import Any

import pytest

from latentlab.study.training.ablation_report import (
    columns,
    csv_text,
    distance_name,
    figure_rows,
    markdown_lines,
    rank_agreement,
    remarks,
    summarise_rows,
    table_rows,
)
from mind.ablation import Row


def cell(label: str, seed: int, distance: float, loss: float | None = 4.0, norm: float = 2.0) -> dict[str, Any]:
    return {
        "label": label, "seed": seed, "error": None, "losses": {} if loss is None else {"loss": loss},
        "distance": {"name": "fd_efficientnet_lite0", "value": distance, "interval": [distance - 1, distance + 2],
                     "warnings": ["few images"]},
        "precision": {"value": 0.5}, "recall": {"value": 0.25},
        "geometry": {"latent_norm": norm, "raw_norm": 1.0, "nearest_angle": 45.0},
        "training": None if loss is None else {"run": "runs/x", "overrides": []},
    }  # fmt: skip


def failure(label: str, seed: int, log: str | None = "runs/y.log") -> dict[str, Any]:
    return {"label": label, "seed": seed, "error": "training: the loss is not finite", "log": log}


def results(rows: list[Row], cells: list[dict[str, Any]], seeds: int = 1, published: bool = True) -> dict[str, Any]:
    source = {"source": "table 5", "columns": {"fid": "FID", "is": "IS"}, "compare": "fid"}
    return {
        "title": "T", "published": source if published else None, "base": "mind-ablation", "weights": None,
        "samples": 2000, "reference": {"name": "fashion:test"}, "extractor": "efficientnet-lite0", "seeds": seeds,
        "rows": summarise_rows(rows, cells), "figures": ["figures/table.png", "figures/table.svg"], "command": None,
    }  # fmt: skip


A, B, C = (Row(label=label, published={"fid": fid}) for label, fid in (("a", 52.1), ("b", 280.78), ("c", 194.61)))


def test_ours_and_published_stand_under_headings_that_say_so() -> None:
    rows = [A, Row(label="b|x", published={"fid": 280.78, "is": 3}, note="inferred")]
    found = results(rows, [cell("a", 0, 10.0), cell("b|x", 0, 20.0, 9.5, 0.04)])
    headings, lines = table_rows(found)
    assert headings == [
        "row", "ours: fd_efficientnet_lite0 on fashion:test (n=2,000)", "ours: precision", "ours: recall",
        "ours: train loss", "ours: mean latent norm", "ours: nearest angle (degrees)", "published: FID", "published: IS",
    ]  # fmt: skip
    assert lines == [
        ["a", "10 [9, 12]", "0.5", "0.25", "4", "2", "45", "52.1", "-"],
        ["b|x [2]", "20 [19, 22]", "0.5", "0.25", "9.5", "0.04", "45", "280.8", "3"],
    ]
    text = "\n".join(markdown_lines(found))
    assert "| b\\|x [2] | 20 [19, 22] |" in text and "* [2] b|x: inferred" in text
    assert "![table](figures/table.png)" in text and "svg" not in text
    assert "published: table 5; other images and other features, so only the order compares" in remarks(found)
    assert remarks(found).count("few images") == 1


def test_seeds_are_mean_and_range_and_a_failed_one_is_left_out() -> None:
    cells = [cell("a", 0, 10.0), cell("a", 1, 14.0), failure("a", 2), failure("b", 0), failure("b", 1), failure("b", 2)]
    found = results([A, B], cells, seeds=3)
    _, (a, b) = table_rows(found)
    assert a[1] == "12 (10 .. 14)" and b[1:7] == ["failed", *["-"] * 5] and b[7] == "280.8"
    lines = remarks(found)
    assert "failed: a, seed 2: training: the loss is not finite (log: runs/y.log)" in lines
    assert lines[0].endswith("mean (range) over 3 seeds")
    values = figure_rows(found)[0]
    assert values[0] == {"label": "a", "values": [10.0, 14.0], "interval": [9.0, 12.0], "published": 52.1}
    assert values[1]["values"] == [] and values[1]["interval"] is None


def test_rows_that_only_sample_have_no_training_columns() -> None:
    found = results([A], [cell("a", 0, 10.0, loss=None)], published=False)
    assert columns(found) == (["distance", "precision", "recall"], [])
    assert figure_rows(found)[2] == "" and len(table_rows(found)[0]) == 4


@pytest.mark.parametrize(
    ("ours", "expected"),
    [((1, 3, 2), 1.0), ((3, 1, 2), -1.0), ((1, 2, 3), 0.5), ((5, 5, 5), None)],
)
def test_rank_agreement(ours: tuple[float, ...], expected: float | None) -> None:
    """Published order a < c < b; Spearman is 1 - 6 sum d^2 / (n (n^2 - 1)): for (1,2,3), d = 0, 1, -1, so 1/2."""
    found = rank_agreement(results([A, B, C], [cell(r.label, 0, v) for r, v in zip((A, B, C), ours, strict=True)]))
    assert found == (None if expected is None else (pytest.approx(expected), 3))


def test_no_order_without_three_rows_that_have_both_numbers() -> None:
    extra = Row(label="own")
    cells = [cell("a", 0, 1.0), cell("b", 0, 2.0), failure("c", 0), cell("own", 0, 3.0)]
    assert rank_agreement(results([A, B, C, extra], cells)) is None
    assert rank_agreement(results([A], [cell("a", 0, 1.0)], published=False)) is None


def test_csv_has_one_number_per_field() -> None:
    found = results([A, B], [cell("a", 0, 10.0), cell("a", 1, 14.0), failure("b", 0), failure("b", 1)], seeds=2)
    a, b = csv.DictReader(io.StringIO(csv_text(found)))
    assert (a["ours_distance"], a["ours_distance_least"], a["ours_distance_greatest"]) == ("12.0", "10.0", "14.0")
    assert a["ours_nearest_angle"] == "45.0" and a["published_fid"] == "52.1" and a["published_is"] == ""
    assert b["row"] == "b" and b["ours_distance"] == "" and (a["failed"], b["failed"]) == ("0", "2")


def test_distance_is_named_even_if_everything_failed() -> None:
    found = results([A], [failure("a", 0, None)])
    assert distance_name(found) == "Frechet distance on efficientnet-lite0 on fashion:test (n=2,000)"
    assert "failed: a, seed 0: training: the loss is not finite" in remarks(found)
