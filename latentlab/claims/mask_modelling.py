"""C16, from the table of the study of tokenizers: mask modelling against the plain autoencoder of the same family."""

import math

import numpy as np
import pandas as pd

from latentlab.claims.claim import Claim
from latentlab.claims.diffusability import SOURCE, judgement, opened
from latentlab.claims.evidence import LEAST_SEEDS, Evidence, Missing
from latentlab.claims.intervals import difference_ends, exponential
from latentlab.claims.verdict import Effect, Judgement, short

MASKED, PLAIN = "mae", "baseline"
"""Clusters that are compared."""


def mask_modelling(evidence: Evidence) -> Judgement:
    """C16: gFD with mask modelling over that without, in every family that has both; geometric means over trainings.

    A repetition is a trained tokenizer (label and seed); its gFD is the mean of logarithms over generators, their seeds and
    guidance scales, each less the mean of all tokenizers in that cell, so that a missing cell does not count as quality.
    """
    study, target = opened(evidence)
    rows = study.table.rows
    logs = np.log(rows[target].where(rows[target] > 0))
    centred = logs - logs.groupby([rows["generator"], rows["guidance"]]).transform("mean")
    trainings = rows.assign(log=centred).groupby(["family", "cluster", "tokenizer", "tokenizer_seed"])["log"].mean()
    effects = []
    for family in sorted(set(rows["family"].astype(str))):
        masked, plain = (_trainings(trainings, family, cluster) for cluster in (MASKED, PLAIN))
        if masked and plain:
            effects.append(_ratio(family, masked, plain))
    if not effects:
        what = f"no family in {SOURCE} has tokenizers of both clusters, {MASKED} and {PLAIN}"
        raise Missing(what, study.command)
    return judgement(study, effects, _reconstruction(rows, target.replace("gfd_", "rfd_")))


def _trainings(values: pd.Series, family: str, cluster: str) -> list[float]:
    """Return the values of one family and cluster."""
    index = values.index
    chosen = (index.get_level_values("family") == family) & (index.get_level_values("cluster") == cluster)
    return [float(value) for value in values[chosen].dropna()]


def _ratio(family: str, masked: list[float], plain: list[float]) -> Effect:
    return Effect(
        name=f"gFD with mask modelling over gFD of the plain autoencoder ({family})",
        value=math.exp(np.mean(masked) - np.mean(plain)),
        ends=exponential(difference_ends(masked, plain)),
        n=min(len(masked), len(plain)),
        unit="trained tokenizers of each kind",
        least=LEAST_SEEDS,
        threshold=1.0,
        side="below",
        because="better at all",
    )


def _reconstruction(rows: pd.DataFrame, name: str) -> list[str]:
    """Say how well both kinds reconstruct: tokenizers of low fidelity can win on gFD."""
    if name not in rows:
        return []
    means = rows.groupby("cluster")[name].mean()
    return [f"mean {name}: {MASKED} {short(means[MASKED])}, {PLAIN} {short(means[PLAIN])}"]


CLAIMS = (
    Claim(
        "C16",
        "Mask modelling makes a plain autoencoder's latents better for generation",
        "MAETok, table 1: gFID 24.47 -> 5.78",
        mask_modelling,
    ),
)
