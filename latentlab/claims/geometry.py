"""C6, from the study of tokenizers, or where it has no such column from the results of `latentlab trajectories`."""

from collections.abc import Sequence

import numpy as np

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.intervals import mean_ends
from latentlab.claims.result_files import Trajectories
from latentlab.claims.study_cells import LEAST_TOKENIZERS
from latentlab.claims.study_effects import SOURCE, refuse_mixed_sizes
from latentlab.claims.verdict import Effect, Judgement

COLUMN = "step_variance_correlation"
COMPANION = "correlation with irreducible variance"
_STRONG = -0.5
_IDENTITY = (
    "for any data the mean square of the exact velocity and the irreducible variance add up to a constant, so that a "
    "confirmation says that the generators fitted their velocity, and little of the latents"
)


def short_where_ambiguous(evidence: Evidence) -> Judgement:
    """C6: over the steps of an ODE, length and irreducible variance are correlated below `_STRONG`; mean over tokenizers.

    Steps of one path follow each other closely, so that there is no interval over steps: a repetition is a tokenizer with its
    generators, or a measured generator.
    """
    try:
        study = evidence.cells
    except Missing as missing:
        return _measured_paths(evidence, missing)
    if not study.has(COLUMN):
        return _measured_paths(evidence, Missing(f"{SOURCE} has no numbers in {COLUMN}", study.command))
    refuse_mixed_sizes(study)
    means = study.table.rows.groupby("tokenizer", sort=False)[COLUMN].mean()
    found = _effect([float(value) for value in means.dropna()], "tokenizers")
    notes = [_IDENTITY, *_without([str(name) for name in means.index[means.isna()]]), "controls left out"]
    return Judgement([(found,)], study.scale(), study.command, SOURCE, notes)


def _measured_paths(evidence: Evidence, missing: Missing) -> Judgement:
    """Judge by single generators.

    Raises:
        Missing: none has been measured beside the variance of its latents.
    """
    measured = evidence.trajectories()
    found = {name: _correlation(one) for name, one in measured.items()}
    values = {name: value for name, value in found.items() if value is not None}
    if not values:
        what = f"{missing.what}, and no trajectories/NAME/results.json of continuous latents holds '{COMPANION}'"
        raise Missing(what, missing.command)
    first = next(iter(values))
    return Judgement(
        [(_effect(list(values.values()), "generators"),)],
        f"{len(values)} generators of continuous latents",
        measured[first].command or "latentlab trajectories",
        f"trajectories/{first}/results.json" if len(values) == 1 else "trajectories/*/results.json",
        [_IDENTITY, *_without([name for name in found if name not in values])],
    )


def _without(names: Sequence[str]) -> list[str]:
    """Name what has no value: the ambiguity of entries of a codebook is of another kind, and some may not be measured."""
    return [f"no value (entries of a codebook have none): {', '.join(names)}"] if names else []


def _correlation(one: Trajectories) -> float | None:
    """Return the correlation over steps; None where it was not made, or the latents are entries of a codebook."""
    if any(m.details.get("discrete") for m in one.measurements):
        return None  # eq. 4 takes the latents as Gaussian: what it calls ambiguous late on a path is known by then
    return next((m.companions[COMPANION].value for m in one.measurements if COMPANION in m.companions), None)


def _effect(values: list[float], unit: str) -> Effect:
    return Effect(
        name="correlation of step length with irreducible variance over the steps, mean",
        value=float(np.mean(values)),
        ends=mean_ends(values),
        n=len(values),
        unit=unit,
        least=LEAST_TOKENIZERS,
        threshold=_STRONG,
        side="below",
        because="a quarter of the variance of the lengths",
    )


CLAIMS = (
    Claim(
        "C6",
        "Steps are short where the irreducible variance is large",
        "Diffusing in the Right Space: figure 10, no numbers",
        short_where_ambiguous,
    ),
)
