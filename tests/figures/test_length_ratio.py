import numpy as np
import pytest

from figures import length_ratio
from latentlab.errors import UserError

T = np.arange(10) / 10 + 0.05


def details(factor: float = 1.0, **changed: object) -> dict:
    ratio = factor * (0.5 + T)
    return {"t": T, "length_ratio": ratio, "length_ratio_low": ratio - 0.1, "length_ratio_high": ratio + 0.1, **changed}


def test_curve_band_and_ideal_line() -> None:
    figure = length_ratio.draw({"ae": details()})
    (axes,) = figure.axes
    curve, ideal = axes.get_lines()
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([T, 0.5 + T], axis=1))
    assert (np.asarray(ideal.get_ydata()) == 1).all() and len(axes.collections) == 1
    assert axes.get_ylim()[0] < 1 < axes.get_ylim()[1] and axes.get_xlabel() == "flow time t   (0 = noise, 1 = data)"
    assert [text.get_text() for text in axes.texts] == ["ae\n1: straight at constant speed; band: 95 % interval"]
    assert figure.legends == []


def test_the_ideal_line_has_room() -> None:
    ratio = np.linspace(1.004, 1.1, 10)
    (axes,) = length_ratio.draw({"mind": details(length_ratio=ratio, length_ratio_low=None)}).axes
    bottom, top = axes.get_ylim()
    assert bottom < 1 - 0.03 * (top - bottom)


def test_irreducible_variance_lies_below_on_the_same_time(viv_details: dict) -> None:
    figure = length_ratio.draw({"ae": details(), "kl": details(0.8, length_ratio_low=None)}, {"kl": viv_details})
    above, below = figure.axes
    (curve,) = below.get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), viv_details["curve"])
    assert curve.get_color() == above.get_lines()[1].get_color()
    assert above.get_xlim() == below.get_xlim() == (0, 1) and below.get_ylim()[0] == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ae", "kl"]


def test_dots_say_what_the_exact_flow_does() -> None:
    figure = length_ratio.draw({"sit": details(gaussian_length_ratio=1.5 - T), "mind": details(0.9)})
    (axes,) = figure.axes
    first, dots, second, _ideal = axes.get_lines()
    np.testing.assert_array_equal(dots.get_ydata(), 1.5 - T)
    assert dots.get_color() == first.get_color() != second.get_color()
    assert axes.texts[0].get_text().endswith("dotted: exact flow to Gaussian classes")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sit", "mind"]


def test_a_single_path_has_no_band() -> None:
    bare = details(length_ratio_low=[None] * 10, length_ratio_high=[None] * 10)
    (axes,) = length_ratio.draw({"ae": bare}).axes
    assert "band" not in axes.texts[0].get_text() and not axes.collections


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "at least one generator"),
        ({"ae": {"t": T}}, "needs 'length_ratio'"),
        ({"ae": details(t=T[:3])}, "same length: t 3, length_ratio 10"),
        ({"ae": details(gaussian_length_ratio=T[:3])}, "same length: t 10, gaussian_length_ratio 3"),
    ],
)
def test_what_cannot_be_drawn_is_named(tables: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        length_ratio.draw(tables)
