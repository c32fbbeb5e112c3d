import numpy as np
import pytest
from matplotlib.colors import LogNorm

from figures import dct_energy
from latentlab.errors import UserError


def test_map_is_the_energy_on_a_log_scale(sec_details: dict) -> None:
    axes = dct_energy.draw({"ae": sec_details}).axes[0]
    (image,) = axes.get_images()
    np.testing.assert_array_equal(np.asarray(image.get_array()), sec_details["energy"])
    assert isinstance(image.norm, LogNorm)
    assert (image.norm.vmin, image.norm.vmax) == (sec_details["energy"].min(), sec_details["energy"].max())
    assert axes.get_ylim() == (3.5, -0.5)  # row 0 on top
    assert [text.get_text() for text in axes.texts] == ["DC", "ρ = 0.25", "ρ = 0.5"]
    assert axes.texts[0].xy == (0, -0.5)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (6, 10), (10, 6)])
def test_thresholds_lie_on_the_map_from_edge_to_edge(h: int, w: int) -> None:
    rhos = [0.25, 0.5, 0.75]
    axes = dct_energy.draw({"ae": {"energy": np.full((h, w), 1 / (h * w))}}, rhos).axes[0]
    for rho, line in zip(rhos, axes.get_lines(), strict=True):
        v, u = line.get_xydata().T
        np.testing.assert_allclose(u + v, rho * (h + w - 2))
        assert v[0] == -0.5 or u[0] == h - 0.5
        assert u[1] == -0.5 or v[1] == w - 0.5
        assert v[0] >= -0.5 and v[1] <= w - 0.5 and u[0] <= h - 0.5 and u[1] >= -0.5


def test_panels_share_one_colour_scale(sec_details: dict) -> None:
    other = {"energy": np.array([[0.9, 0.05], [0.05, 1e-12]]).tolist()}
    figure = dct_energy.draw({"ae": sec_details, "other": other, **{f"t{i}": sec_details for i in range(4)}})
    panels = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in panels] == ["ae", "other", "t0", "t1", "t2", "t3"]
    scales = {(axes.get_images()[0].norm.vmin, axes.get_images()[0].norm.vmax) for axes in panels}
    assert scales == {(sec_details["energy"].min(), 0.9)}  # 1e-12 lies more than six decades below 0.9


def test_no_energy_is_refused() -> None:
    with pytest.raises(UserError, match="zero everywhere"):
        dct_energy.draw({"ae": {"energy": np.zeros((4, 4))}})
