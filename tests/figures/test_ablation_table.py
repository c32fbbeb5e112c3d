import numpy as np
import pytest

from figures import ablation_table
from latentlab.errors import UserError

ROWS = [
    {"label": "A sphere", "values": [10.0, 12.0, 11.0], "interval": None, "published": 52.1},
    {"label": "B no $phere", "values": [40.0], "interval": (35.0, 46.0), "published": 280.78},
    {"label": "E ours", "values": [], "interval": None, "published": None},
]


def test_rows_keep_their_order_in_both_panels() -> None:
    figure = ablation_table.draw(ROWS, "fd", "FID", title="The hypersphere")
    ours, published = figure.axes
    span, seeds, interval, single = ours.get_lines()
    np.testing.assert_allclose(span.get_xydata(), [[10, 0], [12, 0]])
    np.testing.assert_allclose(seeds.get_xydata(), [[10, 0], [12, 0], [11, 0]])
    np.testing.assert_allclose(interval.get_xydata(), [[35, 1], [46, 1]])
    np.testing.assert_allclose(single.get_xydata(), [[40, 1]])
    assert [line.get_xydata().tolist() for line in published.get_lines()] == [[[52.1, 0]], [[280.78, 1]]]
    assert [label.get_text() for label in ours.get_yticklabels()] == ["A sphere", "B no $phere", "E ours"]
    assert ours.get_ylim()[0] > ours.get_ylim()[1]  # first row on top
    assert (ours.get_xlabel(), published.get_xlabel()) == ("fd", "FID")
    assert figure.get_suptitle() == "The hypersphere"


def test_a_failed_row_says_so_and_has_no_point() -> None:
    (ours,) = ablation_table.draw(ROWS[2:], "fd").axes
    assert not ours.get_lines() and [text.get_text() for text in ours.texts] == ["failed"]


def test_published_panel_needs_a_published_number() -> None:
    rows = [{**row, "published": None} for row in ROWS]
    assert len(ablation_table.draw(rows, "fd", "FID").axes) == 1


def test_nothing_to_draw() -> None:
    with pytest.raises(UserError, match="at least one row"):
        ablation_table.draw([], "fd")
