import numpy as np
import pytest

import latentlab
from figures import radial_spectrum
from latentlab.errors import UserError


@pytest.fixture(scope="module")
def details(latents: np.ndarray) -> dict:
    return dict(latentlab.measure("sec", latents).details)


def test_curve_is_the_energy_relative_to_white_noise(details: dict) -> None:
    (axes,) = radial_spectrum.draw({"ae": details}).axes
    line, white = axes.get_lines()
    np.testing.assert_allclose(line.get_xdata(), np.arange(7) / 6)
    energy, frequencies = details["energy"], np.array([1, 2, 3, 4, 3, 2, 1])
    mean = [np.fliplr(energy).trace(offset) for offset in range(3, -4, -1)] / frequencies
    np.testing.assert_allclose(line.get_ydata(), mean * 16)
    assert set(white.get_ydata()) == {1} and axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < line.get_ydata().min() and axes.get_ylim()[1] > line.get_ydata().max()
    assert {"0.1", "1"} <= {label.get_text() for label in axes.get_yticklabels()}


def test_white_noise_lies_on_its_line() -> None:
    z = np.random.default_rng(0).standard_normal((300, 8, 6, 10)).astype(np.float32)
    for distance in ("manhattan", "euclidean"):
        curve = (
            radial_spectrum.draw({"noise": latentlab.measure("sec", z, distance=distance).details})
            .axes[0]
            .get_lines()[0]
        )
        np.testing.assert_allclose(curve.get_ydata(), 1, atol=0.1)


def test_several_tokenizers_have_a_legend(details: dict) -> None:
    other = {"frequency": [0, 1, 2], "radial_energy": [0.9, 0.1, 1e-30], "radial_white": [0.25, 0.5, 0.25]}
    figure = radial_spectrum.draw({"ae": details, "cost $1 or $2": other})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ae", "cost $1 or $2"]
    np.testing.assert_allclose(figure.axes[0].get_lines()[1].get_ydata(), [3.6, 0.2, np.nan])  # a rounding error


def test_narrow_grids_leave_out_rings_without_a_frequency() -> None:
    z = np.random.default_rng(0).standard_normal((50, 2, 1, 5))
    details = latentlab.measure("sec", z, distance="euclidean").details
    line = radial_spectrum.draw({"ae": {**details, "radial_white": [0.2, 0.2, 0, 0.2, 0.4]}}).axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 0.25, 0.75, 1])


def test_nothing_to_draw() -> None:
    with pytest.raises(UserError, match="at least one tokenizer"):
        radial_spectrum.draw({})
    constant = latentlab.measure("sec", np.ones((3, 2, 4, 4))).details
    with pytest.raises(UserError, match="'ae' has no spectrum to draw"):
        radial_spectrum.draw({"ae": constant})
    with pytest.raises(UserError, match="'ae' has no spectrum to draw"):
        radial_spectrum.draw({"ae": {"frequency": [0], "radial_energy": [1.0], "radial_white": [1.0]}})
