import numpy as np
import pytest

from figures import collapse_strips
from latentlab.errors import UserError

LABELS = ("view", "own reconstruction", "6-D, no normalisation")


def block(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {label: random.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8) for label in LABELS}


def test_pictures_are_the_input_block_by_block() -> None:
    blocks = {"continuous: kl": block(0), "discrete: $ibq": block(1)}
    figure = collapse_strips.draw(blocks, name="fashion:test, image 3")
    grid = np.array(figure.axes).reshape(3, 9)
    for start, rows in zip((0, 5), blocks.values(), strict=True):
        for line, images in zip(grid[:, start : start + 4], rows.values(), strict=True):
            for axes, image in zip(line, images, strict=True):
                np.testing.assert_array_equal(axes.get_images()[0].get_array(), image.transpose(1, 2, 0))
    assert not any(axes.get_images() for axes in grid[:, 4])
    assert [grid[0, i].get_title(loc="left") for i in (0, 5)] == ["continuous: kl", "discrete: $ibq"]
    assert [axes.texts[0].get_text() for axes in grid[:, 0]] == ["view", "own reconstruction", "6-D, no\nnormalisation"]
    assert figure.get_suptitle() == "Through a bottleneck: fashion:test, image 3"


def test_all_pictures_have_one_size_and_words_stay_on_the_page() -> None:
    figure = collapse_strips.draw({"a": block(0)}, name="imagefolder:/data/a_folder_with_a_long_name/val, image 280")
    title = figure.texts[0].get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.x1
    boxes = [axes.get_window_extent() for axes in figure.axes if axes.get_images()]
    assert np.ptp([box.width for box in boxes]) < 0.5 and np.ptp([box.height for box in boxes]) < 0.5
    labels = [axes.texts[0].get_window_extent() for axes in figure.axes if axes.texts]
    assert len(labels) == 3 and all(label.x0 >= 0 for label in labels)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least one tokenizer"):
        collapse_strips.draw({})
    with pytest.raises(UserError, match="the rows of b are view, not view, own reconstruction, 6-D"):
        collapse_strips.draw({"a": block(0), "b": {"view": block(0)["view"]}})
    with pytest.raises(
        UserError, match=r"'own reconstruction' of a must be \[k,3,H,W\] like the others, got \[3, 3, 8, 8\]"
    ):
        collapse_strips.draw({"a": {**block(0), "own reconstruction": block(0)["view"][:3]}})
