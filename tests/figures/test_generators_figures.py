"""Learning curves, guidance curves and sampling cost: what is drawn is what was given."""

from typing import Any

import numpy as np
import pytest

from figures import guidance_curves, learning_curves, sampling_cost
from latentlab.errors import UserError


def curve(factor: float = 1.0) -> dict[str, Any]:
    return {"operations": [1e12, 2e12], "step": [10, 20], "minutes": [1.0, 2.0], "distance": [40 * factor, 20 * factor]}


def sweep(factor: float = 1.0) -> dict[str, Any]:
    return {"scale": [1, 2], "distance": [20 * factor, 10.0], "precision": [0.5, 0.7], "recall": [0.6, 0.4]}


def test_learning_curves_are_means_over_seeds() -> None:
    figure = learning_curves.draw({"a": [curve(), curve(2.0)], "b": [curve(3.0)]}, "fd (n=2)", {"real images": 5.0})
    operations, steps, minutes = figure.axes
    for axes, at in ((operations, [1, 2]), (steps, [10, 20]), (minutes, [1, 2])):
        first, second = axes.get_lines()[:2]
        np.testing.assert_allclose(first.get_xydata(), np.c_[at, [60, 30]])
        np.testing.assert_allclose(second.get_ydata(), [120, 60])
        assert len(axes.collections) == 1  # the band of the two seeds
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert [text.get_text() for text in minutes.texts] == ["real images"]


def test_guidance_has_three_panels() -> None:
    figure = guidance_curves.draw({"a": [sweep()], "b": [sweep(2.0)]}, "fd (n=2)", {"real images": 5.0})
    for axes, values in zip(figure.axes, ([20, 10], [0.5, 0.7], [0.6, 0.4]), strict=True):
        np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), values)
    assert figure.axes[0].get_yscale() == "log" and figure.axes[1].get_yscale() == "linear"


def test_cost_joins_the_scales_of_a_generator() -> None:
    rows = [
        {"label": "a", "scale": scale, "seconds": scale / 10, "evaluations": 25 * scale, "distance": 30 / scale}
        for scale in (1, 2)
    ]
    figure = sampling_cost.draw([*rows, {**rows[0], "label": "b", "distance": 8.0}], "fd (n=2)")
    seconds, evaluations = figure.axes
    np.testing.assert_allclose(seconds.get_lines()[0].get_xydata(), [[0.1, 30], [0.2, 15]])
    np.testing.assert_allclose(evaluations.get_lines()[1].get_xydata(), [[25, 8]])
    assert [text.get_text() for text in seconds.texts] == ["w=1", "w=2", "w=1"]


def test_mistakes() -> None:
    for draw in (learning_curves.draw, guidance_curves.draw, sampling_cost.draw):
        with pytest.raises(UserError, match="at least one generator"):
            draw({}, "fd")
    with pytest.raises(UserError, match="needs 'minutes'"):
        learning_curves.draw({"a": [{key: value for key, value in curve().items() if key != "minutes"}]}, "fd")


def test_ticks_are_plain_numbers_and_few() -> None:
    """Ranges of less than a power of ten have ticks too, none of them a power."""
    for seconds in ((0.04, 0.09), (0.003, 8.0)):
        rows = [
            {"label": "a", "scale": scale, "seconds": at, "evaluations": 4.0, "distance": 200 + at}
            for scale, at in zip((1.0, 2.0), seconds, strict=True)
        ]
        axis = sampling_cost.draw(rows, "fd").axes[0].xaxis
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        assert 2 <= len(ticks) <= 12
        assert {label.get_text() for label in axis.get_majorticklabels()} >= {f"{tick:g}" for tick in ticks}
        assert not any(label.get_text() for label in axis.get_minorticklabels())


def test_floors_that_are_level_share_their_names() -> None:
    floors = {"real images": 4.0, "reconstructions of ibq": 9.17, "reconstructions of kl": 9.2}
    last = learning_curves.draw({"a": [curve()]}, "fd (n=2)", floors).axes[-1]
    named = [text.get_text() for text in last.texts]
    assert sorted(named) == ["real images", "reconstructions of ibq, reconstructions of kl"]
