"""The theme and `save`: the same bytes every time, no state left behind, colours that colour-blind readers tell apart."""

import threading
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from figures import viv_curve
from figures.style import DASHES, FORMS, MARKERS, PALETTE, colour, fit, look, save, themed
from latentlab.errors import UserError


def test_save_writes_png_and_svg_beside_each_other(viv_details: dict, tmp_path: Path) -> None:
    png, svg = save(viv_curve.draw({"ae": viv_details}), tmp_path / "deep" / "viv v1.5")
    assert (png.name, svg.name) == ("viv v1.5.png", "viv v1.5.svg")
    assert sorted(tmp_path.rglob("*.*")) == [png, svg]  # no temporary files
    image = np.asarray(Image.open(png).convert("L"))
    assert image.shape[1] >= 1000  # wide enough for a slide at 100 %
    assert 0.005 < (image < 128).mean() < 0.5  # ink, and not only ink
    assert svg.read_text().lstrip().startswith("<?xml")


def test_same_figure_gives_the_same_bytes_without_a_date(viv_details: dict, tmp_path: Path) -> None:
    figure, again = (viv_curve.draw({"ae": viv_details}) for _ in range(2))
    png, svg = save(figure, tmp_path / "first")
    for name, same in (("saved_twice", figure), ("drawn_twice", again)):
        other_png, other_svg = save(same, tmp_path / name)
        assert other_png.read_bytes() == png.read_bytes() and other_svg.read_bytes() == svg.read_bytes()
    assert "<dc:date>" not in svg.read_text()


def test_callers_settings_neither_change_nor_matter(viv_details: dict, tmp_path: Path) -> None:
    plain = save(viv_curve.draw({"ae": viv_details}), tmp_path / "plain")[1].read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": "theirs"}):
        before = dict(matplotlib.rcParams)
        themed = save(viv_curve.draw({"ae": viv_details}), tmp_path / "themed")[1].read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert themed == plain


def test_threads_do_not_disturb_each_other(viv_details: dict, tmp_path: Path) -> None:
    alone = save(viv_curve.draw({"ae": viv_details}), tmp_path / "alone")[1].read_bytes()

    def draw(name: str) -> None:
        save(viv_curve.draw({"ae": viv_details}), tmp_path / name)

    threads = [threading.Thread(target=draw, args=(f"thread{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((tmp_path / f"thread{i}.svg").read_bytes() == alone for i in range(3))


def test_pyplot_knows_of_no_figure(viv_details: dict, tmp_path: Path) -> None:
    import matplotlib.pyplot

    figure = viv_curve.draw({"ae": viv_details})
    save(figure, tmp_path / "figure")
    assert isinstance(figure, Figure)
    assert matplotlib.pyplot.get_fignums() == []
    assert figure.canvas.manager is None


def test_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"cannot write .*x\.png"):
        save(Figure(), tmp_path / "taken" / "x")


# Machado, Oliveira and Fernandes (2009), severity 1: what dichromats see, on linear RGB.
_VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _lab(hexes: tuple[str, ...], vision: str) -> np.ndarray:
    rgb = np.array([[int(h[i : i + 2], 16) / 255 for i in (1, 3, 5)] for h in hexes])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(_VISION[vision])).clip(0, 1) @ _XYZ.T / [0.9505, 1, 1.089]
    x, y, z = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("vision", _VISION)
def test_colours_are_told_apart(vision: str) -> None:
    """CIELAB distance 15 is about seven times the smallest difference that is seen."""
    assert min(np.linalg.norm(a - b) for a, b in combinations(_lab(PALETTE, vision), 2)) > 15


def test_curves_and_classes_differ_beyond_colour() -> None:
    curves = [(look(i)["color"], str(look(i)["linestyle"])) for i in range(len(PALETTE) * len(DASHES))]
    classes = [(colour(i), MARKERS[i % len(MARKERS)]) for i in range(len(PALETTE) * len(MARKERS))]
    assert len(set(curves)) == 30 and len(set(classes)) == 70
    assert all(a[1] != b[1] for a, b in pairwise(curves))


def test_forms_differ_without_colour() -> None:
    assert len(set(FORMS)) == len(FORMS) >= 20 and {filling for _, filling in FORMS} == {"full", "left", "bottom"}
    assert FORMS[:7] == tuple((marker, "full") for marker in MARKERS)


@themed
def _two_panels(label: str, title: str) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes in figure.subplots(1, 2):
        axes.set_title(title, loc="left")
        axes.set_xlabel(label)
    figure.supylabel(label)
    return figure


@pytest.mark.parametrize(
    "label",
    ["a_name (a long unit of something measured), lower is better", "a_name_" * 9, "one more word " * 5 + "end"],
)
def test_long_labels_are_broken_and_titles_shortened(label: str) -> None:
    figure = _two_panels(label, "a rather long title of a panel, longer than the panel is")
    left, right = figure.axes
    assert left.get_title(loc="left").startswith("…") and left.get_title(loc="left").endswith("the panel is")
    assert (
        right.get_title(loc="left") == "a rather long title of a panel, longer than the panel is"
    )  # nothing beside it
    for axes in figure.axes:
        assert axes.xaxis.label.get_window_extent().width <= axes.get_window_extent().width + 8
    beside = figure._supylabel.get_window_extent()
    assert beside.y0 >= 0 and beside.y1 <= figure.bbox.height
    assert "".join(figure.get_supylabel().split()) == "".join(label.split())


def test_labels_are_broken_around_units_first() -> None:
    figure = _two_panels("quality (squared distance of features), lower is better", "")
    assert figure.axes[0].get_xlabel() == "quality (squared distance of features),\nlower is better"


def test_long_names_keep_their_end() -> None:
    assert fit("short", 10) == "short"
    assert fit("a/very/long/path", 6) == "…/path"
