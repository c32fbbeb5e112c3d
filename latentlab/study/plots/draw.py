"""The figures of a study: every one whose data lie in its folder, and why the others were left out."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from figures import study_correlation_map
from figures.study_layout import short
from figures.style import save
from latentlab.errors import UserError
from latentlab.files import read_json, write_json
from latentlab.study.plots.inputs import StudyFolder
from latentlab.study.plots.of_all import OF_ALL
from latentlab.study.plots.of_generator import OF_A_GENERATOR

DRAWN_FILE = "drawn.json"
"""In the folder of the figures: which files were drawn, and why figures were left out."""


class _Plan(NamedTuple):
    stem: str
    draw: Callable[[], Figure]


def draw_study(folder: Path) -> list[Path]:
    """Draw every figure of a study whose data are there into ``folder/figures``, as PNG and SVG.

    Figures of an earlier time that are not drawn any more are removed. ``drawn.json`` beside them says what was left out and
    why (see `left_out`): a missing or damaged optional file costs only the figures that need it.

    Args:
        folder: with ``results.csv`` and ``columns.json``; the rest is optional (see `StudyFolder`).

    Returns:
        The written files, PNG before SVG, in a fixed order.

    Raises:
        UserError: there is no table of a study, or the folder cannot be written to.
    """
    study = StudyFolder(folder)
    figures = folder / "figures"
    files: list[Path] = []
    missing: dict[str, str] = {}
    for plan in _plans(study):
        try:
            figure = plan.draw()
        except UserError as error:
            missing[plan.stem] = str(error)
        else:
            files += save(figure, figures / plan.stem)
    _remove_stale(figures, {file.name for file in files})
    write_json(figures / DRAWN_FILE, {"files": [file.name for file in files], "left_out": missing})
    return files


def left_out(folder: Path) -> dict[str, str]:
    """Return the figures that `draw_study` left out of a study's folder, by name, and why.

    Raises:
        UserError: nothing was drawn yet.
    """
    return dict(read_json(folder / "figures" / DRAWN_FILE)["left_out"])


def _remove_stale(figures: Path, drawn: set[str]) -> None:
    """Remove what an earlier call drew and this one did not; files of others stay."""
    try:
        before = read_json(figures / DRAWN_FILE)["files"]
    except (UserError, KeyError, TypeError):
        return
    for name in before if isinstance(before, list) else ():
        if (
            name not in drawn
            and isinstance(name, str)
            and Path(name).name == name
            and Path(name).suffix in (".png", ".svg")
        ):
            (figures / name).unlink(missing_ok=True)


def _plans(study: StudyFolder) -> Iterator[_Plan]:
    """Yield all figures in the order of a report: what goes with quality, then why, then how sure that is."""
    for generator in study.generators:
        for name, draw in OF_A_GENERATOR.items():
            yield _Plan(f"{name}_{_slug(generator)}", partial(draw, study, generator))
    yield from _correlation_maps(study)
    for name, draw_all in OF_ALL.items():
        yield _Plan(name, partial(draw_all, study))


def _slug(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", words)


def _correlation_maps(study: StudyFolder) -> Iterator[_Plan]:
    """Yield a map per target and set of covariates; one that says what is missing where there is no analysis."""
    records = [one for one in study.records("correlations") if one["within"] == "" and one["method"] == "spearman"]
    pairs = dict.fromkeys((one["target"], tuple(one["covariates"])) for one in records)
    kinds = [kind for kind in pairs if kind[0] in study.targets()]
    if not kinds:
        yield _Plan("correlation_map", lambda: study_correlation_map.draw(study.held("correlations"), "quality"))
    for target, covariates in kinds:
        given = f"_given_{'_'.join(map(short, covariates))}" if covariates else ""
        draw = partial(study_correlation_map.draw, records, target, "spearman", covariates)
        yield _Plan(_slug(f"correlation_map_{target}{given}"), draw)
