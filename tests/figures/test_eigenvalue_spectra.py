import numpy as np
import pytest

from figures import eigenvalue_spectra
from latentlab.errors import UserError


def test_line_is_the_spectrum_over_relative_rank(viv_details: dict) -> None:
    (axes,) = eigenvalue_spectra.draw({"ae": viv_details}).axes
    (line,) = axes.get_lines()
    d = len(viv_details["ranks"])
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, d + 1) / d)
    np.testing.assert_array_equal(line.get_ydata(), viv_details["eigenvalues"])
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert low < viv_details["eigenvalues"].min() and viv_details["eigenvalues"].max() < high
    assert axes.get_xlabel() == "rank / number of dimensions"


def test_sizes_share_the_axis_up_to_their_last_rank() -> None:
    small = {"ranks": [1, 2], "eigenvalues": [2.0, 1.0]}
    thinned = {"ranks": [1, 500, 1000], "eigenvalues": [4.0, 0.1, 0.01]}
    lines = eigenvalue_spectra.draw({"small": small, "large": thinned}).axes[0].get_lines()
    assert [line.get_xdata()[-1] for line in lines] == [1, 1]


def test_rounding_errors_do_not_stretch_the_axis() -> None:
    flat = {"ranks": [1, 2, 3, 4], "eigenvalues": [1.0, 0.5, 1e-17, -1e-18]}
    low, high = eigenvalue_spectra.draw({"flat": flat}).axes[0].get_ylim()
    assert 0.1 < low < 0.5 and 1 < high < 10


@pytest.mark.parametrize("eigenvalues", [[0.0, 0.0], [None, None]])
def test_constant_latents_are_refused(eigenvalues: list) -> None:
    with pytest.raises(UserError, match="'flat' is positive"):
        eigenvalue_spectra.draw({"flat": {"ranks": [1, 2], "eigenvalues": eigenvalues}})
