"""Studies of tokenizers with known answers, for claims about them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from latentlab.study.table import Column, StudyTable

from ..study.example_study import example_study

MORE = (
    Column("m_linear_probe", "measurement", "Accuracy.", "", "higher"),
    Column("m_gmm", "measurement", "Modes.", "", "lower"),
    Column("m_equivariance", "measurement", "Error.", "", "lower"),
    Column("m_uniformity", "measurement", "Unevenness.", "", "lower"),
    Column("m_ifid", "measurement", "Distance of interpolations.", "", "lower"),
    Column("step_variance_correlation", "trajectory", "Of step length and variance."),
)
TARGET = "gfd_fashion_classifier"
Change = Callable[[pd.DataFrame], pd.DataFrame | None]


def study(
    folder: Path,
    change: Change | None = None,
    tokenizers: int = 24,
    noise: float = 0.3,
    more: tuple[Column, ...] = (),
) -> Path:
    """Write the example study with more columns: all follow the hidden ease, uniformity and iFID loosely, equivariance not."""
    table = example_study(tokenizers, noise=noise)
    rows = table.rows.copy()
    names = rows["tokenizer"].unique()
    ease = 2 - rows.groupby("tokenizer", sort=False)["m_viv"].first().to_numpy()
    ours = np.random.default_rng(11).normal(size=(len(names), 4))
    per_tokenizer = {
        "m_linear_probe": rows.groupby("tokenizer", sort=False)["m_lnc"].first().to_numpy() + 0.002 * ours[:, 0],
        "m_gmm": np.round(30 - 20 * ease + ours[:, 1]),
        "m_equivariance": _unrelated(ease, ours[:, 2]),
        "m_uniformity": ease + 0.2 * ours[:, 2],
        "m_ifid": ease + 0.2 * ours[:, 3],
        "step_variance_correlation": -0.9 + 0.02 * ours[:, 0],
        "m_srss": ease + 0.15 * ours[:, 1],
        "m_cds": ease + 0.05 * ours[:, 3],
    }
    for name, values in per_tokenizer.items():
        rows[name] = rows["tokenizer"].map(dict(zip(names, values, strict=True)))
    changed = None if change is None else change(rows)
    rows = rows if changed is None else changed
    StudyTable(rows, (*table.columns, *MORE, *more)).write(folder / "diffusability")
    return folder


def _unrelated(ease: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return ``noise`` without what it shares with ``ease``."""
    centred = ease - ease.mean()
    found: np.ndarray = noise - centred * (centred @ noise) / (centred @ centred)
    return found


def setting(**columns: Callable[[pd.DataFrame], Any]) -> Change:
    def change(rows: pd.DataFrame) -> None:
        for name, of in columns.items():
            rows[name] = of(rows)

    return change


def per_tokenizer(rows: pd.DataFrame, scale: float = 1.0, seed: int = 5) -> pd.Series:
    """Return random numbers, one per tokenizer."""
    names = rows["tokenizer"].unique()
    values = np.random.default_rng(seed).normal(size=len(names)) * scale
    return rows["tokenizer"].map(dict(zip(names, values, strict=True)))


def drawn_study(
    folder: Path, seed: int, strengths: Mapping[str, float], cells: int = 1, noise: float = 0.0, tokenizers: int = 24
) -> Path:
    """Write a study of tokenizers drawn at random: Gaussian measurements of these correlations with a hidden quality.

    gFD is the quality plus ``noise`` standard deviations, other ones in each cell.
    """
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=tokenizers)
    made = {f"m_{name}": r * quality + np.sqrt(1 - r**2) * rng.normal(size=tokenizers) for name, r in strengths.items()}
    same = {"tokenizer_seed": 0, "cluster": "any", "family": "any", "control": "", "control_of": "", "held_out": False}
    rows = [
        pd.DataFrame({
            "tokenizer": [f"t{i}" for i in range(tokenizers)], **same, "generator": "sit", "generator_seed": 0,
            "guidance": 1.0 + cell, **made, TARGET: quality + noise * rng.normal(size=tokenizers),
        })
        for cell in range(cells)
    ]  # fmt: skip
    columns = (*(Column(name, "measurement", "Made up.") for name in made), Column(TARGET, "quality", "Made up."))
    StudyTable(pd.concat(rows, ignore_index=True), columns).write(folder / "diffusability")
    return folder


def odd(name: str, tokenizers: int) -> Change:
    """Return a study in which as many tokenizers differ from all others in a column."""
    number = {f"tokenizer-{i:02d}": float(i) for i in range(1, 1 + tokenizers)}
    return setting(**{name: lambda rows: rows["tokenizer"].map(number).fillna(0.0)})
