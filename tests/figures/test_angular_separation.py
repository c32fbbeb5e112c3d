import numpy as np
import pytest

from figures import angular_separation
from latentlab.errors import UserError

WHOLE = {"angles": [30.0, 10.0, 20.0, 20.0], "uniform": [5.0, 15.0]}
PART = {"angles": [1.0, 2.0], "uniform": [1.0, 3.0]}
TABLE = {"whole": WHOLE, "subvector": PART}


def test_distribution_functions() -> None:
    figure = angular_separation.draw({"mind": TABLE})
    whole, part = figure.axes
    learned, uniform = whole.get_lines()
    np.testing.assert_allclose(learned.get_xydata(), [[10, 0.25], [20, 0.5], [20, 0.75], [30, 1]])
    np.testing.assert_allclose(uniform.get_xydata(), [[5, 0.5], [15, 1]])
    np.testing.assert_allclose(part.get_lines()[0].get_xydata(), [[1, 0.5], [2, 1]])
    assert learned.get_linestyle() == "-" and uniform.get_linestyle() == "--"
    assert figure.get_suptitle().startswith("Angle to the nearest other code: mind\n")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["learned", "uniform random"]


def test_several_tables_are_named_once() -> None:
    figure = angular_separation.draw({"sphere": TABLE, "none": TABLE})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sphere", "uniform random", "none"]
    first, _, second, _ = figure.axes[0].get_lines()
    assert first.get_color() != second.get_color()


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least one token table"):
        angular_separation.draw({})
    with pytest.raises(UserError, match="needs 'angles'"):
        angular_separation.draw({"a": {"whole": WHOLE}})
