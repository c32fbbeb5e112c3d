import numpy as np
import pytest

import latentlab
from figures import similarity_decay
from latentlab.errors import UserError


@pytest.fixture(scope="module")
def details(latents: np.ndarray) -> dict:
    return dict(latentlab.measure("lds", latents, far=3).details)


def test_curve_and_band_are_the_input(details: dict) -> None:
    figure = similarity_decay.draw({"ae": details})
    (axes,) = figure.axes
    line, zero, far = axes.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), np.stack([details["distance"], details["similarity"]], axis=1))
    assert set(zero.get_ydata()) == {0} and set(far.get_xdata()) == {3}
    edge = axes.collections[0].get_paths()[0].vertices
    assert {details["similarity_low"][1], details["similarity_high"][1]} == set(edge[edge[:, 0] == 2, 1])
    assert [text.get_text() for text in axes.texts] == [
        "distant",
        "ae\nthe deeper the fall, the more spatial structure; band: 95 % interval",
    ]
    assert axes.get_xlabel() == "Manhattan distance of two tokens, in cells"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert figure.legends == []


def test_several_tokenizers_have_a_legend_and_may_lack_a_band(details: dict) -> None:
    bare = {"distance": [1, 2, 3], "similarity": [0.5, 0.25, None]}
    figure = similarity_decay.draw({"ae": details, "cost $1 or $2": bare})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ae", "cost $1 or $2"]
    axes = figure.axes[0]
    assert len(axes.collections) == 1
    assert [text.get_text() for text in axes.texts] == [
        "the deeper the fall, the more spatial structure; band: 95 % interval"
    ]  # not where distant tokens begin: the second does not say


def test_wrong_tables_are_refused(details: dict) -> None:
    with pytest.raises(UserError, match="at least one tokenizer"):
        similarity_decay.draw({})
    with pytest.raises(UserError, match="same length"):
        similarity_decay.draw({"ae": {**details, "similarity": [1.0]}})
