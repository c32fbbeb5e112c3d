import numpy as np
import pytest

from figures import latent_norms
from latentlab.errors import UserError

RUNS = {
    "sphere": {"step": [0, 10, 20], "latent_norm": [1.99, 2.0, 2.0], "raw_norm": [9e-4, 0.1, 0.3]},
    "no $phere": {"step": [0, 10], "latent_norm": [0.04, 0.02], "raw_norm": [0.04, 0.02]},
}


def test_every_run_is_in_both_panels() -> None:
    figure = latent_norms.draw(RUNS, radius=2.0)
    seen, stored = figure.axes
    np.testing.assert_allclose(seen.get_lines()[0].get_xydata(), [[0, 1.99], [10, 2.0], [20, 2.0]])
    np.testing.assert_allclose(stored.get_lines()[0].get_ydata(), [9e-4, 0.1, 0.3])
    np.testing.assert_allclose(stored.get_lines()[1].get_xydata(), [[0, 0.04], [10, 0.02]])
    assert seen.get_lines()[2].get_ydata()[0] == 2.0 and len(stored.get_lines()) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(RUNS)
    assert seen.get_yscale() == "log" and seen.get_ylim() == stored.get_ylim()
    assert figure.get_suptitle() == "Norms over training\ngrey line: 2, the norm on the product of spheres"


def test_one_run_is_named_in_the_title() -> None:
    figure = latent_norms.draw({"a": RUNS["sphere"]})
    assert figure.get_suptitle() == "Norms over training: a" and not figure.legends
    single = latent_norms.draw({"a": {"step": [5], "latent_norm": [2.0], "raw_norm": [1.0]}})
    assert single.axes[0].get_lines()[0].get_marker() == "o"  # one point is no line


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least one run"):
        latent_norms.draw({})
    with pytest.raises(UserError, match="needs 'raw_norm'"):
        latent_norms.draw({"a": {"step": [0], "latent_norm": [2.0]}})
