import numpy as np
import pytest
from matplotlib.figure import Figure

from figures import equivariance
from latentlab.errors import UserError

NAMES = ["90°", "180°", "x0.5", "left-right"]
KINDS = ["rotate", "rotate", "scale", "flip"]


def details(factor: float = 1.0, **changed: object) -> dict:
    error = factor * np.array([0.4, 0.6, 0.3, 0.5])
    table = {"transforms": NAMES, "kinds": KINDS, "error": error, "error_low": error - 0.05, "error_high": error + 0.1}
    return {**table, "unit": "relative squared error", **changed}


def points(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [tuple(xy) for xy in line.get_xydata()]
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_marker() not in ("None", None)
    }


def test_points_and_bars_are_the_input() -> None:
    figure = equivariance.draw({"ae": details(), "kl": details(2.0)})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Turned clockwise", "Resized", "Mirrored"]
    drawn = points(figure)
    assert list(drawn) == NAMES
    assert [x for x, _ in drawn["180°"]] == [0.6, 1.2]
    (ae, kl) = (y for _, y in drawn["x0.5"])
    assert (ae, kl) == (0, 1)  # one transform: on its row
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ae", "kl"]
    bars = [segment for axes in figure.axes for c in axes.collections for segment in c.get_segments()]
    assert sorted(float(bar[1, 0] - bar[0, 0]) for bar in bars) == pytest.approx([0.15] * 8)
    assert all(axes.get_xlim()[0] == 0 for axes in figure.axes)


def test_one_tokenizer_is_named_in_the_title() -> None:
    figure = equivariance.draw({"cost $1 or $2": details()})
    title = figure.get_suptitle()
    assert "cost $1 or $2" in title and "2 is what unrelated latents have" in title
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [""]
    other = equivariance.draw({"ae": details(unit="1 - cosine")})
    assert "unrelated" not in other.get_suptitle() and other.get_supxlabel() == "1 - cosine"


def test_kinds_that_nobody_measured_have_no_panel_and_intervals_may_lack() -> None:
    only = {"transforms": ["x0.5"], "kinds": ["scale"], "error": [0.3], "error_low": [None], "error_high": [None]}
    figure = equivariance.draw({"ae": {**only, "unit": "latent units"}})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Resized"]
    bare = equivariance.draw({"ae": details(error_low=None)})
    assert [x for x, _ in points(bare)["90°"]] == [0.4]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "at least one tokenizer"),
        ({"ae": details(kinds=KINDS[:2])}, "must have the same length: got 4, 2 and 4"),
        ({"ae": details(kinds=["shear"] * 4)}, "unknown kind of transform 'shear'"),
        ({"ae": details(error=None)}, "needs 'error'"),
        ({"ae": details(), "kl": details(unit="1 - cosine")}, "errors compare only in one unit, got ae relative"),
    ],
)
def test_what_cannot_be_drawn_is_named(tables: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        equivariance.draw(tables)
