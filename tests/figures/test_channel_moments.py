import numpy as np
import pytest
from scipy.stats import kurtosis

from figures import channel_moments
from latentlab.errors import UserError


@pytest.fixture
def statistics_details(latents: np.ndarray) -> dict:
    """Of latents [n,c,h,w]."""
    columns = np.moveaxis(3 * latents, 1, -1).reshape(-1, latents.shape[1])
    return {"mean": columns.mean(0), "std": columns.std(0, ddof=1), "excess_kurtosis": kurtosis(columns)}


def test_marks_are_the_input(statistics_details: dict) -> None:
    figure = channel_moments.draw({"ae": statistics_details})
    for axes, (values, reference) in zip(
        figure.axes, zip(statistics_details.values(), (0, 1, 0), strict=True), strict=True
    ):
        marks, line = axes.get_lines()
        np.testing.assert_allclose(marks.get_ydata(), values)
        np.testing.assert_allclose(marks.get_xdata(), np.arange(len(values)))
        assert list(line.get_ydata()) == [reference, reference]
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean", "standard deviation", "excess kurtosis"]
    assert figure.legends == []


def test_several_stand_side_by_side(statistics_details: dict) -> None:
    other = {key: np.concatenate([values, values]).tolist() for key, values in statistics_details.items()}
    figure = channel_moments.draw({"ae": statistics_details, "cost $1 or $2": other})
    first, second, _ = figure.axes[0].get_lines()
    assert first.get_xdata()[0] < 0 < second.get_xdata()[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ae", "cost $1 or $2"]


def test_missing_tables_are_refused(statistics_details: dict) -> None:
    with pytest.raises(UserError, match="'std'"):
        channel_moments.draw({"ae": {"mean": statistics_details["mean"]}})
    with pytest.raises(UserError, match="at least one tokenizer"):
        channel_moments.draw({})
