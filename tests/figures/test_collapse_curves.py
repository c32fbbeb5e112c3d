from typing import Any

import numpy as np
import pytest

from figures import collapse_curves
from latentlab.errors import UserError


def run(path: str, setting: str, subject: int, top: float) -> dict[str, Any]:
    curve = [top, top / 2, top / 4]
    kinds = {"loss": curve, "to_reconstruction": curve, "to_view": [value + 0.1 for value in curve]}
    return {
        "path": path, "tokenizer": f"${path}", "setting": setting, "subject": subject, "seed": 0,
        "iterations": [0, 50, 100], "curves": {"fitted": kinds, "heldout_views": kinds},
        "references": {"other_view": 0.3 + subject, "tokenizer_fitted": 0.05},
    }  # fmt: skip


RUNS = [
    run(path, setting, subject, top + shift)
    for subject, top in enumerate((0.4, 0.8, 0.9))
    for path, shift in (("continuous", 0.0), ("discrete", 1.0))
    for setting in ("6-D, circles", "6-D, no normalisation")
]


def test_median_range_and_references() -> None:
    figure = collapse_curves.draw(RUNS, "st_lpips")
    assert len(figure.axes) == 6
    fitted, discrete, _, _, to_view, _ = figure.axes
    circles, free, reference = fitted.get_lines()
    np.testing.assert_allclose(circles.get_xydata(), [[0, 0.8], [50, 0.4], [100, 0.2]])
    np.testing.assert_allclose(free.get_ydata(), [0.8, 0.4, 0.2])
    assert reference.get_ydata()[0] == 1.3  # median of 0.3, 1.3, 2.3
    (band,) = fitted.collections  # of the first setting only
    edge = band.get_paths()[0].vertices
    assert set(edge[edge[:, 0] == 100, 1]) == {0.1, 0.225}
    np.testing.assert_allclose(discrete.get_lines()[0].get_ydata(), [1.8, 0.9, 0.45])
    assert (
        to_view.get_lines()[0].get_ydata()[0] == pytest.approx(0.9) and to_view.get_lines()[-1].get_ydata()[0] == 0.05
    )


def test_words_and_scales() -> None:
    figure = collapse_curves.draw(RUNS, "st_lpips")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["continuous: $continuous", "discrete: $discrete"]
    assert (
        figure.get_suptitle()
        == "Through a bottleneck: st_lpips\nmedian of 3 runs per curve; band: range at 6-D, circles"
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["6-D, circles", "6-D, no normalisation"]
    for row in (figure.axes[:2], figure.axes[2:4], figure.axes[4:]):
        assert row[0].get_ylim() == row[1].get_ylim() and row[0].get_ylim()[0] == 0
        assert row[0].get_ylim()[1] > 1.9  # the highest curve is in the second column
    assert [axes.get_xlabel() for axes in figure.axes[4:]] == ["iterations"] * 2


def test_one_run_has_no_band() -> None:
    figure = collapse_curves.draw(RUNS[:1])
    assert len(figure.axes) == 3 and not figure.axes[0].collections and "one run per curve" in figure.get_suptitle()


def test_nothing_to_draw() -> None:
    with pytest.raises(UserError, match="at least one run"):
        collapse_curves.draw([])
