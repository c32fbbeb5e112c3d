import numpy as np
import pytest

from figures import nearest_codes
from latentlab.errors import UserError

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 5, 5), dtype=np.uint8)
IDS = np.array([[7, 1, 2, 3], [9, 4, 5, 6]])
ANGLES = np.array([[1.25, 20.0, 30.0], [4.0, 5.0, 6.0]])


def test_pictures_words_and_frames() -> None:
    shared = np.array([[True, False, False], [False, False, True]])
    figure = nearest_codes.draw(PICTURES, IDS, ANGLES, shared, name="fashion$32")
    grid = np.array(figure.axes).reshape(2, 4)
    for axes, picture in zip(grid.flat, PICTURES.reshape(8, 3, 5, 5), strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), picture.transpose(1, 2, 0))
    assert [axes.get_xlabel() for axes in grid[0]] == ["code 7", "1: 1.2°", "2: 20.0°", "3: 30.0°"]
    frames = [axes.spines["left"].get_visible() for axes in grid.flat]
    assert frames == [False, True, False, False, False, False, False, True]
    assert figure.get_suptitle() == "Nearest codes: fashion$32\nframed: also near in the tokenizer's own codebook"


def test_without_a_codebook_nothing_is_framed() -> None:
    figure = nearest_codes.draw(PICTURES, IDS, ANGLES)
    assert figure.get_suptitle() == "Nearest codes"
    assert not any(axes.spines["top"].get_visible() for axes in figure.axes)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"pictures must be uint8 \[2, 4, 3, H, W\], got uint8 \[2, 3, 3, 5, 5\]"):
        nearest_codes.draw(PICTURES[:, :3], IDS, ANGLES)
    with pytest.raises(UserError, match=r"angles must be \[2, 3\], got \[2, 4\]"):
        nearest_codes.draw(PICTURES, IDS, IDS)
    with pytest.raises(UserError, match="at least one code and one neighbour"):
        nearest_codes.draw(PICTURES[:, :1], IDS[:, :1], ANGLES[:, :0])
