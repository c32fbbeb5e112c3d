"""The figures of one analysis, or of several side by side: every one whose measurement is there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from figures import (
    channel_moments,
    code_usage,
    dct_energy,
    decoder_sensitivity,
    density_map,
    eigenvalue_spectra,
    equivariance,
    interpolations,
    length_ratio,
    nll_over_components,
    radial_spectrum,
    similarity_decay,
    viv_curve,
)
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
    "radial_spectrum": _Plan("sec", "radial_energy", radial_spectrum.draw),
    "similarity_decay": _Plan("lds", "similarity", similarity_decay.draw),
    "nll_over_components": _Plan("gmm", "components", nll_over_components.draw),
    "density_map": _Plan("uniformity", "density", density_map.draw),
    "code_usage": _Plan("codebook", "frequency", code_usage.draw),
    "channel_moments": _Plan("latent_statistics", "excess_kurtosis", channel_moments.draw),
    "equivariance": _Plan("equivariance", "error", equivariance.draw),
    "decoder_sensitivity": _Plan("sensitivity", "pixels", decoder_sensitivity.draw),
    "interpolations": _Plan("ifid", "pictures", interpolations.draw),
    "length_ratio": _Plan("straightness", "length_ratio", length_ratio.draw),
}


def draw_all(results: Mapping[str, Mapping[str, Measurement]], folder: Path) -> list[Path]:
    """Write every figure whose measurement (and, as variants differ, whose table) is in ``results``.

    Args:
        results: what was measured (``ibq on fashion:test``) -> name -> measurement, fresh or read back from JSON; several are
            drawn into the same figures.
        folder: where ``viv_curve.png``, ``viv_curve.svg`` and so on go.

    Returns:
        The written files, PNG before SVG, in a fixed order.

    Raises:
        UserError: a table is damaged, or ``folder`` cannot be written to.
    """
    written: list[Path] = []
    for stem, plan in _PLANS.items():
        found = {
            title: measured[plan.measurement] for title, measured in results.items() if plan.measurement in measured
        }
        tables = {title: m.details for title, m in found.items() if m.details.get(plan.needs) is not None}
        if tables:
            written += save(plan.draw(tables), folder / stem)
    return written
