import numpy as np
import pytest

from figures import umap_classes
from latentlab.errors import UserError


@pytest.fixture
def points(latents: np.ndarray) -> np.ndarray:
    return latents.reshape(len(latents), -1)[:, :2]


def test_every_class_has_its_points_and_its_name(points: np.ndarray, labels: np.ndarray) -> None:
    figure = umap_classes.draw(points, labels, ("ant", "bee", "cat", "dog"), name="ae")
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["ant", "bee", "cat", "dog"]
    for k, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xydata(), points[labels == k])
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 4
    assert figure.axes[0].get_xticks().size == 0  # the axes have no unit


def test_legend_is_outside_and_whole_for_20_classes(points: np.ndarray) -> None:
    names = [f"a rather long class name {k}" for k in range(20)]
    figure = umap_classes.draw(points, np.arange(len(points)) % 20, names)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 20
    assert box.x0 >= figure.axes[0].get_window_extent().x1
    assert box.y0 >= 0 and box.y1 <= figure.bbox.y1 and box.x1 <= figure.bbox.x1


def test_more_classes_are_counted_instead_of_named(points: np.ndarray) -> None:
    figure = umap_classes.draw(points, np.arange(len(points)) % 21)
    assert figure.legends == []
    assert "21 classes, too many to name" in figure.axes[0].texts[0].get_text()


def test_labels_beyond_the_names_are_numbers(points: np.ndarray, labels: np.ndarray) -> None:
    figure = umap_classes.draw(points, labels, ("ant", "bee"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ant", "bee", "2", "3"]


def test_without_labels_there_is_one_colour(points: np.ndarray) -> None:
    figure = umap_classes.draw(points)
    assert len(figure.axes[0].get_lines()) == 1 and figure.legends == []
    assert "no labels" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize("shape", [(5, 3), (5,), (0, 2)])
def test_points_must_be_in_the_plane(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"points must be \[n,2\]"):
        umap_classes.draw(np.zeros(shape))


def test_labels_must_fit(points: np.ndarray) -> None:
    with pytest.raises(UserError, match="got 3 for 400 points"):
        umap_classes.draw(points, np.arange(3))
