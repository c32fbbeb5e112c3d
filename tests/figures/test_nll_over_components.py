import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import nll_over_components
from latentlab.errors import UserError


def _lines(axes: Axes, marker: str, style: str) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_marker() == marker and line.get_linestyle() == style]


def test_lines_are_the_two_curves(gmm_details: dict) -> None:
    (axes,) = nll_over_components.draw({"ae": gmm_details}).axes
    for key, style in (("train_nll", "--"), ("heldout_nll", "-")):
        (line,) = _lines(axes, "None", style)
        np.testing.assert_array_equal(line.get_xdata(), gmm_details["components"])
        np.testing.assert_array_equal(line.get_ydata(), gmm_details[key])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "16"]
    assert "nats, 2 dimensions" in axes.get_ylabel()


def test_star_marks_the_lowest_bic_on_the_heldout_curve(gmm_details: dict) -> None:
    (axes,) = nll_over_components.draw({"ae": gmm_details}).axes
    best = int(np.argmin(gmm_details["bic"]))
    (star,) = _lines(axes, "*", "None")
    assert star.get_xydata().tolist() == [[gmm_details["components"][best], gmm_details["heldout_nll"][best]]]


def test_fits_that_did_not_converge_are_hollow(gmm_details: dict) -> None:
    figure = nll_over_components.draw({"ae": gmm_details})
    hollow = {}
    for marker, key in (("s", "train_nll"), ("o", "heldout_nll")):
        for points in _lines(figure.axes[0], marker, "None"):
            hollow[key, points.get_markerfacecolor() == "white"] = points.get_ydata().tolist()
        assert hollow[key, False] == gmm_details[key][:2]
        assert hollow[key, True] == gmm_details[key][2:]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "not converged"


def test_all_converged_is_not_a_legend_entry(gmm_details: dict) -> None:
    done = gmm_details | {"converged": [True, True, True]}
    figure = nll_over_components.draw({"ae": done, "kl": done})
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["ae", "kl", "held-out images", "training images", "lowest BIC"]


def test_many_components_leave_room_between_ticks(gmm_details: dict) -> None:
    k = list(range(1, 51))
    many = dict.fromkeys(("components", "train_nll", "heldout_nll", "bic", "converged"), k) | {"dims": 2}
    figure = nll_over_components.draw({"ae": many})
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_xticklabels()]
    assert len(boxes) > 5
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_unknown_bic_has_no_star(gmm_details: dict) -> None:
    (axes,) = nll_over_components.draw({"ae": gmm_details | {"bic": [None] * 3}}).axes
    assert _lines(axes, "*", "None") == []


@pytest.mark.parametrize("dims", [3, None])
def test_different_dimensions_do_not_compare(gmm_details: dict, dims: int | None) -> None:
    with pytest.raises(UserError, match=f"equal dimension, got ae 2, kl {dims}"):
        nll_over_components.draw({"ae": gmm_details, "kl": gmm_details | {"dims": dims}})
