import numpy as np
import pytest

from figures import decoder_sensitivity
from latentlab.errors import UserError

LEVELS = np.array([0.05, 0.06, 0.1, 1.0])


def details(factor: float = 1.0, **changed: object) -> dict:
    table: dict = {"levels": LEVELS}
    for key, power in (("pixels", 1), ("perceptual", 2), ("features", 1)):
        values = factor * LEVELS**power
        table |= {key: values, f"{key}_low": 0.9 * values, f"{key}_high": 1.1 * values}
    return {**table, "perceptual_name": "st_lpips", "features_name": "efficientnet features", **changed}


def test_curves_and_bands_are_the_input() -> None:
    figure = decoder_sensitivity.draw({"ae": details(), "kl": details(2.0)})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Pixels", "Perceptual", "Features"]
    pixels, perceptual, features = figure.axes
    ae, kl = pixels.get_lines()
    np.testing.assert_array_equal(ae.get_xydata(), np.stack([LEVELS, LEVELS], axis=1))
    np.testing.assert_array_equal(kl.get_ydata(), 2 * LEVELS)
    np.testing.assert_array_equal(perceptual.get_lines()[0].get_ydata(), LEVELS**2)
    assert len(features.collections) == 2
    assert (pixels.get_xscale(), pixels.get_yscale()) == ("log", "log")
    assert perceptual.get_ylabel() == "st_lpips" and features.get_ylabel().startswith("efficientnet features")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ae", "kl"]
    assert list(pixels.xaxis.get_major_locator()()) == [0.05, 0.1, 1.0]  # 0.06 would overlap


def test_panels_that_a_tokenizer_lacks_are_left_out() -> None:
    bare = {"levels": LEVELS.tolist(), "pixels": LEVELS.tolist()}
    figure = decoder_sensitivity.draw({"cost $1 or $2": bare})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Pixels"]
    assert "cost $1 or $2" in figure.get_suptitle() and figure.legends == [] and not figure.axes[0].collections
    assert len(decoder_sensitivity.draw({"ae": details(), "kl": {**bare, "features": None}}).axes) == 1


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "at least one tokenizer"),
        ({"ae": details(levels=None)}, "needs 'levels'"),
        ({"ae": details(pixels=[1.0])}, "same length: levels 4, pixels 1"),
        ({"ae": details(), "kl": details(perceptual_name="lpips")}, "one judge, got ae st_lpips, kl lpips"),
    ],
)
def test_what_cannot_be_drawn_is_named(tables: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoder_sensitivity.draw(tables)
