import numpy as np
import pytest

from figures import interpolations
from latentlab.errors import UserError


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 4, 3, 8, 8))


def _shown(figure) -> list[np.ndarray]:
    return [
        np.asarray(axes.get_images()[0].get_array())
        for block in figure.subfigs
        for axes in block.axes
        if axes.get_images()
    ]


def test_rows_are_reconstruction_interpolant_and_neighbour(pictures: np.ndarray) -> None:
    figure = interpolations.draw({"ibq on fashion:test": {"pictures": pictures.tolist()}})
    shown = _shown(figure)
    assert len(shown) == 12
    for place, image in enumerate(shown):
        np.testing.assert_allclose(image, pictures[place // 4, place % 4].transpose(1, 2, 0) / 255)
    (block,) = figure.subfigs
    assert block.get_suptitle() == "ibq on fashion:test"
    assert [axes.get_ylabel() for axes in block.axes[::4]] == ["reconstruction", "interpolant", "neighbour"]


def test_one_block_per_tokenizer_also_with_fewer_pictures(pictures: np.ndarray) -> None:
    figure = interpolations.draw({"a": {"pictures": pictures}, "b": {"pictures": pictures[:, :2]}})
    assert len(figure.subfigs) == 2 and len(_shown(figure)) == 12 + 6


def test_bad_pictures_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"must be \[3,m,3,h,w\]"):
        interpolations.draw({"a": {"pictures": pictures[:2]}})
    with pytest.raises(UserError, match="needs 'pictures'"):
        interpolations.draw({"a": {}})
    with pytest.raises(UserError, match="nothing to draw"):
        interpolations.draw({})
