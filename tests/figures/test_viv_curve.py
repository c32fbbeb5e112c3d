import numpy as np
import pytest

from figures import viv_curve
from latentlab.errors import UserError


def test_curve_and_band_are_the_input(viv_details: dict) -> None:
    figure = viv_curve.draw({"ae": viv_details})
    (axes,) = figure.axes
    (line,) = axes.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), np.stack([viv_details["t"], viv_details["curve"]], axis=1))
    (band,) = axes.collections
    edge = band.get_paths()[0].vertices
    middle = edge[edge[:, 0] == 0.5, 1]
    assert {viv_details["curve_low"][25], viv_details["curve_high"][25]} == set(middle)
    assert axes.get_xlabel() == "flow time t   (0 = noise, 1 = data)"
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.texts] == ["ae\nlower is easier to learn; band: 95 % interval"]
    assert figure.legends == []


def test_ends_are_total_variance_and_number_of_dimensions(viv_details: dict) -> None:
    """I(0) = tr(Sigma), I(1) = d: per dimension the mean eigenvalue and 1, wherever the picture is read."""
    (line,) = viv_curve.draw({"ae": viv_details}).axes[0].get_lines()
    assert line.get_ydata()[0] == pytest.approx(viv_details["eigenvalues"].mean())
    assert line.get_ydata()[-1] == pytest.approx(1)


def test_several_tokenizers_have_a_legend_and_may_lack_a_band(viv_details: dict) -> None:
    bare = {"t": viv_details["t"].tolist(), "curve": (2 * viv_details["curve"]).tolist(), "curve_low": None}
    figure = viv_curve.draw({"ae": viv_details, "cost $1 or $2": bare})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ae", "cost $1 or $2"]
    assert len(figure.axes[0].get_lines()) == 2 and len(figure.axes[0].collections) == 1


def test_no_band_is_not_announced(viv_details: dict) -> None:
    figure = viv_curve.draw({"ae": {"t": viv_details["t"], "curve": viv_details["curve"]}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["ae\nlower is easier to learn"]


def test_nothing_to_draw() -> None:
    with pytest.raises(UserError, match="at least one tokenizer"):
        viv_curve.draw({})
