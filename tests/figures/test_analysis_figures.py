import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from figures import dct_energy, eigenvalue_spectra, nll_over_components, viv_curve
from figures.analysis import draw_all
from latentlab.measurement import Measurement


@pytest.fixture
def results(viv_details: dict, sec_details: dict, gmm_details: dict) -> dict[str, Measurement]:
    details = {"viv": viv_details, "sec": sec_details, "gmm": gmm_details, "lnc": {"ceiling": 1.0}}
    return {name: Measurement(name, "default", 1.0, None, "lower", "", 400, details=of) for name, of in details.items()}


def test_every_figure_is_written_and_shows_something(results: dict, tmp_path: Path) -> None:
    written = draw_all({"ae on synthetic latents": results}, tmp_path / "figures")
    stems = ["viv_curve", "eigenvalue_spectra", "dct_energy", "nll_over_components"]
    assert written == [tmp_path / "figures" / f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    for png in written[::2]:
        assert np.asarray(Image.open(png).convert("L")).std() > 10
        assert "script" not in png.with_suffix(".svg").read_text()


def test_measurements_read_back_from_json_give_the_same_pictures(results: dict, tmp_path: Path) -> None:
    for figure, name in (
        (viv_curve, "viv"),
        (eigenvalue_spectra, "viv"),
        (dct_energy, "sec"),
        (nll_over_components, "gmm"),
    ):
        again = Measurement.from_dict(json.loads(results[name].to_json()))
        pictures = [_pixels(figure.draw({"ae": m.details})) for m in (results[name], again)]
        np.testing.assert_array_equal(*pictures)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_absent_measurements_and_tables_are_left_out(results: dict, tmp_path: Path) -> None:
    marginal = Measurement("viv", "marginal", 1.0, None, "lower", "", 400, details={"per_class": {}})
    written = draw_all({"ae": {"viv": marginal, "sec": results["sec"]}}, tmp_path)
    assert [path.name for path in written] == ["dct_energy.png", "dct_energy.svg"]
    assert draw_all({"ae": {}}, tmp_path) == []


def test_several_tokenizers_share_a_figure(results: dict, tmp_path: Path) -> None:
    draw_all({"ae": results, "ibq": {"viv": results["viv"]}}, tmp_path)
    curves, maps = ((tmp_path / f"{stem}.svg").read_text() for stem in ("viv_curve", "dct_energy"))
    assert "<!-- ibq -->" in curves and "<!-- ibq -->" not in maps
