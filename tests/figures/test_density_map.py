import numpy as np
import pytest

from analyses.point_density import point_density
from figures import density_map
from latentlab.errors import UserError


@pytest.fixture(scope="module")
def uniformity_details() -> dict:
    points = np.random.default_rng(0).standard_normal((200, 2))
    density = point_density(points)
    return {"points": points, "density": density / density.mean()}


def test_points_and_colours_are_the_input(uniformity_details: dict) -> None:
    figure = density_map.draw({"ae": uniformity_details})
    axes, bar = figure.axes
    (marks,) = axes.collections
    np.testing.assert_allclose(marks.get_offsets(), uniformity_details["points"])
    np.testing.assert_allclose(marks.get_array(), uniformity_details["density"])
    cv = uniformity_details["density"].std() / uniformity_details["density"].mean()
    assert axes.get_title() == f"ae\ndensity CV {cv:.3f} (this draw)"
    assert bar.get_ylabel() == "density over its mean"
    assert marks.get_rasterized()


def test_several_share_one_scale_and_come_from_json(uniformity_details: dict) -> None:
    wider = {
        "points": uniformity_details["points"].tolist(),
        "density": (3 * uniformity_details["density"]).tolist(),
    }
    figure = density_map.draw({str(i): uniformity_details for i in range(4)} | {"cost $1 or $2": wider})
    panels = figure.axes[:-1]
    assert len(panels) == 5
    assert {axes.collections[0].get_clim() for axes in panels} == {
        (uniformity_details["density"].min(), 3 * uniformity_details["density"].max())
    }
    assert panels[-1].get_title().startswith("cost $1 or $2")


def test_tables_that_do_not_fit_are_refused(uniformity_details: dict) -> None:
    with pytest.raises(UserError, match=r"points must be \[200,2\]"):
        density_map.draw({"ae": {**uniformity_details, "points": np.zeros((3, 2))}})
    with pytest.raises(UserError, match="'density'"):
        density_map.draw({"ae": {"points": np.zeros((3, 2))}})
    with pytest.raises(UserError, match="at least one tokenizer"):
        density_map.draw({})
