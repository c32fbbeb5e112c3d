import numpy as np
import pytest

from figures import code_usage
from latentlab.errors import UserError


@pytest.fixture
def codebook_details() -> dict:
    counts = np.array([40, 20, 20, 10, 10])
    return {"ranks": np.arange(1, 6), "frequency": counts / counts.sum(), "vocabulary": 8}


def test_curve_counts_in_codebooks(codebook_details: dict) -> None:
    """5 of 8 codes; the first is 0.4 * 8 = 3.2 times as frequent as if all were used alike."""
    figure = code_usage.draw({"ibq": codebook_details})
    (axes,) = figure.axes
    curve, end, even = axes.get_lines()
    np.testing.assert_allclose(curve.get_xdata(), np.arange(1, 6) / 8)
    np.testing.assert_allclose(curve.get_ydata(), [3.2, 1.6, 1.6, 0.8, 0.8])
    assert (end.get_xdata()[0], end.get_ydata()[0]) == pytest.approx((5 / 8, 0.8))
    assert list(even.get_ydata()) == [1, 1]
    assert axes.get_yscale() == "log"
    assert figure.legends == []


def test_several_are_named_with_their_vocabulary(codebook_details: dict) -> None:
    listed = {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in codebook_details.items()
    }
    figure = code_usage.draw({"ibq": codebook_details, "cost $1 or $2": {**listed, "vocabulary": 16}})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ibq (8 codes)", "cost $1 or $2 (16 codes)"]


def test_missing_tables_are_refused(codebook_details: dict) -> None:
    with pytest.raises(UserError, match="'vocabulary'"):
        code_usage.draw({"ibq": {**codebook_details, "vocabulary": None}})
    with pytest.raises(UserError, match="'frequency'"):
        code_usage.draw({"ibq": {"ranks": [1], "vocabulary": 8}})
    with pytest.raises(UserError, match="at least one tokenizer"):
        code_usage.draw({})
