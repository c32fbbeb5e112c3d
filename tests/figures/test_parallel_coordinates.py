"""Parallel coordinates: every axis between its own extremes, turned so that up is easier."""

import numpy as np
import pytest

from figures.parallel_coordinates import draw
from latentlab import Measurement, UserError


def made(name: str, value: float, direction: str, half: float = 0.0) -> Measurement:
    interval = (value - half, value + half) if half else None
    return Measurement(name, "v", value, interval, direction, "", 100)


RESULTS = {
    "ae": {"viv": made("viv", 0.5, "lower"), "lnc": made("lnc", 0.6, "higher", 0.1), "norm": made("norm", 1.0, "none")},
    "ibq": {"viv": made("viv", 1.0, "lower"), "lnc": made("lnc", 0.4, "higher"), "norm": made("norm", 2.0, "none")},
    "kl": {"viv": made("viv", 0.75, "lower")},
}


def test_up_is_easier_whatever_the_direction() -> None:
    axes = draw(RESULTS).axes[0]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}
    np.testing.assert_allclose(lines["ae"], [1, (0.6 - 0.4) / 0.3])  # the interval reaches up to 0.7
    np.testing.assert_allclose(lines["ibq"], [0, 0])
    np.testing.assert_allclose(lines["kl"], [0.5, np.nan])  # a gap, no line across the axis it is not on
    assert [label.get_text() for label in axes.get_xticklabels()] == ["viv", "lnc"]


def test_ends_of_the_axes_show_their_values() -> None:
    texts = {text.get_text() for text in draw(RESULTS).axes[0].texts}
    assert {"0.5", "1", "0.4", "0.7"} <= texts


def test_equal_values_stand_in_the_middle() -> None:
    same = {name: {"viv": made("viv", 0.3, "lower")} for name in ("a", "b")}
    lines = {line.get_label(): line for line in draw(same).axes[0].get_lines()}
    assert all(list(lines[name].get_ydata()) == [0.5] for name in same)


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        draw({"a": RESULTS["ae"]})
