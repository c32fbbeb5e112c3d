"""The figures of one analysis: every one whose measurement is there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from figures import dct_energy, eigenvalue_spectra, nll_over_components, viv_curve
from figures.columns import Details
from figures.style import save
from latentlab.measurement import Measurement


class _Plan(NamedTuple):
    measurement: str
    needs: str
    draw: Callable[[Mapping[str, Details]], Figure]


_PLANS = {
    "viv_curve": _Plan("viv", "curve", viv_curve.draw),
    "eigenvalue_spectra": _Plan("viv", "eigenvalues", eigenvalue_spectra.draw),
    "dct_energy": _Plan("sec", "energy", dct_energy.draw),
    "nll_over_components": _Plan("gmm", "components", nll_over_components.draw),
}


def draw_all(results: Mapping[str, Measurement], folder: Path, *, title: str) -> list[Path]:
    """Write every figure whose measurement (and, as variants differ, whose table) is in ``results``.

    Args:
        results: measurements by name, as measured or read back from JSON.
        folder: where ``viv_curve.png``, ``viv_curve.svg`` and so on go.
        title: what was measured, for the title of each figure (``ibq (fashion32) on fashion:test``).

    Returns:
        The written files, PNG before SVG, in a fixed order.

    Raises:
        UserError: a table is damaged, or ``folder`` cannot be written to.
    """
    written: list[Path] = []
    for stem, plan in _PLANS.items():
        found = results.get(plan.measurement)
        if found is not None and found.details.get(plan.needs) is not None:
            written += save(plan.draw({title: found.details}), folder / stem)
    return written
