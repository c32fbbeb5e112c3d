"""C2, C3, C4, C5, C7 and C8, from the table of the study of tokenizers.

Correlations are Spearman's, over tokenizers, with the Fréchet distance of samples (gFD) on the study's own classifier; the
published ones are Pearson's, with gFID. What is said of every cell or of every measurement is a condition for each: the least
of several statistics comes out lower in resamplings than it is, so that its interval would refute what holds.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from analyses.correlation import Method
from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.intervals import replicate_ends
from latentlab.claims.statistic import Statistic, average, place
from latentlab.claims.study_cells import LEAST_TOKENIZERS, StudyCells
from latentlab.claims.verdict import Effect, Judgement, Side, short

SOURCE = "diffusability/results.csv"
_PREDICTS, _PREDICTS_BECAUSE = 0.5, "a quarter of the variance of the ranks"
_GOES_WITH, _GOES_WITH_BECAUSE = 0.3, "a medium association by Cohen's convention"
_WEAK = {"m_equivariance": "equivariance", "m_uniformity": "uniformity", "m_ifid": "continuity"}


def stable_predictor(evidence: Evidence) -> Judgement:
    """C2: by |rank correlation| with gFD VIV is in the upper third of all measurements, and predicts in every cell."""
    study, target = opened(evidence, "m_viv")
    found, uncounted = _measured(study, target)
    if "m_viv" in uncounted:
        raise Missing(f"no correlation in {SOURCE}: {uncounted['m_viv']}", study.command)
    if len(found) < 4:
        what = f"{SOURCE} has {len(found)} measurements, too few for an upper third"
        raise Missing("; ".join([what, *_not_counted(uncounted)]), study.command)
    sizes = {name: one.map(np.abs) for name, one in found.items()}
    rank = place(sizes["m_viv"], [one for name, one in sizes.items() if name != "m_viv"])
    third = f"the upper third of {len(found)}"
    upper = effect("place of VIV by |r| with gFD, as a share of all measurements", rank, 1 / 3, "below", third)
    every, missing = _viv_in_every_cell(study, target)
    notes = [listing(sizes), *_not_counted(uncounted), *_other_judges(study, "m_viv")]
    return judgement(study, [upper, *every], notes, missing)


def _viv_in_every_cell(study: StudyCells, target: str) -> tuple[list[Effect], list[str]]:
    """Return the correlation with gFD in each cell, and in words which cells have none and why."""
    effects, missing = [], []
    for generator, guidance in study.cells:
        cell = study.only(generator, guidance)
        found, name = cell.correlation("m_viv", target), f"r of VIV with gFD, {generator} at guidance {guidance:g}"
        if found.n:
            effects.append(effect(name, found, _PREDICTS, "above", _PREDICTS_BECAUSE))
        else:
            missing.append(f"{name}: {cell.why_none('m_viv', target)}")
    return effects, missing


def stands_in(evidence: Evidence) -> Judgement:
    """C3: Pearson's correlation of LNC with linear-probe accuracy over tokenizers."""
    study, _ = opened(evidence, "m_lnc", "m_linear_probe")
    found = correlation(study, "m_lnc", "m_linear_probe", "pearson")
    because = "four fifths of the variance"
    return judgement(study, [effect("r of LNC with probe accuracy (Pearson)", found, 0.9, "above", because)])


def together(evidence: Evidence) -> Judgement:
    """C4: each of LNC and SRSS, higher is easier, goes with a lower gFD among tokenizers that are level in the other.

    No gain in R^2 decides: within the fitted sample a second predictor never lowers it, and of left-out tokenizers any costs
    about 1/n of it.
    """
    study, target = opened(evidence, "m_lnc", "m_srss")
    effects = [
        effect(
            f"r of {told} with gFD, given {other}", _beyond(study, name, target, given), 0.0, "below", "adds anything"
        )
        for told, name, other, given in (("LNC", "m_lnc", "SRSS", "m_srss"), ("SRSS", "m_srss", "LNC", "m_lnc"))
    ]
    return judgement(study, effects, [_predicted(study, target)])


def _beyond(study: StudyCells, x: str, y: str, given: str) -> Statistic:
    """Return the partial rank correlation of two columns in every cell; `Missing` where no cell has one."""
    return _known(study.partial_correlation(x, y, given), study, x, y, given)


def _predicted(study: StudyCells, target: str) -> str:
    """Say how well LNC and SRSS predict tokenizers that the fit has not seen."""
    both = ["m_lnc", "m_srss"]
    together, lnc, srss = (short(study.explained(names, target, both)) for names in (both, both[:1], both[1:]))
    return f"prediction of left-out tokenizers, R^2 of linear fits: together {together}, LNC {lnc}, SRSS {srss}"


def straighter(evidence: Evidence) -> Judgement:
    """C5: rank correlations of straightness and of efficiency of the ODE with gFD, both strongly negative."""
    study, target = opened(evidence, "straightness", "efficiency")
    effects = [
        effect(f"r of {name} with gFD", correlation(study, name, target), -_PREDICTS, "below", _PREDICTS_BECAUSE)
        for name in ("straightness", "efficiency")
    ]
    return judgement(study, effects)


def predict_less(evidence: Evidence) -> Judgement:
    """C7: by mean |rank correlation| over cells the three are below the other measurements, equivariance below each one."""
    study, target = opened(evidence, *_WEAK)
    found, uncounted = _measured(study, target)
    found |= {name: correlation(study, name, target) for name in _WEAK}
    sizes = {name: one.map(np.abs) for name, one in found.items()}
    means = {name: one.mean() for name, one in sizes.items()}
    others = [one for name, one in means.items() if name not in _WEAK]
    left_out = _not_counted({name: why for name, why in uncounted.items() if name not in _WEAK})
    if not others:
        what = f"{SOURCE} has no other measurements to compare with"
        raise Missing("; ".join([what, *left_out]), study.command)
    gap = average(others) - average([means[name] for name in _WEAK])
    effects = [effect("mean |r| of the other measurements less that of the three", gap, 0.0, "above", "less is less")]
    effects += [
        effect(
            f"|r| of {_plain(name)} less that of equivariance",
            one - means["m_equivariance"],
            0.0,
            "above",
            "it is last",
        )
        for name, one in means.items()
        if name != "m_equivariance"
    ]
    return judgement(study, effects, [listing(sizes), *left_out, "continuity is taken to be iFID"])


def modes_and_probing(evidence: Evidence) -> Judgement:
    """C8: the number of modes rises, and probe accuracy falls, with the generator's held-out loss and with gFD."""
    study, target = opened(evidence, "m_gmm", "m_linear_probe", "held_out_loss")
    outcomes = {"held-out loss": "held_out_loss", "gFD": target}
    modes = [
        effect(
            f"r of GMM modes with {told}", correlation(study, "m_gmm", name), _GOES_WITH, "above", _GOES_WITH_BECAUSE
        )
        for told, name in outcomes.items()
    ]
    probe = [
        effect(f"r of probe accuracy with {told}", correlation(study, "m_linear_probe", name), -_GOES_WITH, "below",
               _GOES_WITH_BECAUSE)
        for told, name in outcomes.items()
    ]  # fmt: skip
    return judgement(study, [*modes, *probe])


# --- shared -----------------------------------------------------------------------------------------------------------


def opened(evidence: Evidence, *columns: str) -> tuple[StudyCells, str]:
    """Return the study, without tokenizers that learned from the judge, and the distance that quality is judged by.

    Raises:
        Missing: the study mixes sample sizes, or the study, its quality, or one of ``columns`` is not there or has no numbers.
    """
    study = evidence.cells
    if study.sizes:
        raise Missing(
            f"{SOURCE} mixes sizes, and distances of unequal ones do not compare: {study.sizes}", study.command
        )
    targets = [name for name in study.targets if study.has(name)]
    absent = [name for name in columns if not study.has(name)] + ([] if targets else ["gfd_JUDGE"])
    if absent:
        raise Missing(f"{SOURCE} has no numbers in {', '.join(absent)}", study.command)
    return study.judged_fairly(targets[0]), targets[0]


def correlation(study: StudyCells, x: str, y: str, method: Method = "spearman") -> Statistic:
    """Return the correlation of two columns in every cell.

    Raises:
        Missing: no cell has one.
    """
    return _known(study.correlation(x, y, method), study, x, y)


def _known(found: Statistic, study: StudyCells, *columns: str) -> Statistic:
    """Return a statistic of ``columns`` that some cell has.

    Raises:
        Missing: none has it.
    """
    if not found.n:
        raise Missing(f"no correlation in {SOURCE}: {study.why_none(*columns)}", study.command)
    return found


def _measured(study: StudyCells, target: str) -> tuple[dict[str, Statistic], dict[str, str]]:
    """Return the correlations of measurements with ``target``, and of those that are not counted why, in words."""
    found = {name: study.correlation(name, target) for name in study.measurements}
    without = {name: study.why_none(name, target) for name, one in found.items() if not one.n}
    return {name: one for name, one in found.items() if one.n}, {**study.unlisted, **without}


def _not_counted(uncounted: Mapping[str, str]) -> list[str]:
    return [f"not counted: {', '.join(uncounted.values())}"] if uncounted else []


def effect(name: str, found: Statistic, threshold: float, side: Side, because: str) -> Effect:
    """Return the mean of a statistic over cells as an effect of tokenizers."""
    return Effect(
        name, found.value, replicate_ends(found.replicates), found.n, "tokenizers", LEAST_TOKENIZERS, threshold, side,
        because,
    )  # fmt: skip


def judgement(
    study: StudyCells, effects: Sequence[Effect], notes: Sequence[str] = (), missing: Sequence[str] = ()
) -> Judgement:
    """Return the judgement that all effects must agree on."""
    told = [*notes, f"judged by {study.targets[0]}, controls left out", *study.left_out]
    return Judgement([(one,) for one in effects], study.scale(), study.command, SOURCE, told, missing)


def listing(sizes: Mapping[str, Statistic]) -> str:
    """List the measurements by |r|, largest first."""
    order = sorted(sizes, key=lambda name: (-sizes[name].value, name))
    return "mean |r| with gFD: " + ", ".join(f"{_plain(name)} {short(sizes[name].value)}" for name in order)


def _plain(name: str) -> str:
    """Return a measurement without the prefix of its column."""
    return name.removeprefix("m_")


def _other_judges(study: StudyCells, name: str) -> list[str]:
    """Say what the other judges' distances give."""
    others = {target: study.judged_fairly(target).correlation(name, target) for target in study.targets[1:]}
    told = [f"{target} {short(found.value)}" for target, found in others.items() if found.n]
    return [f"mean r by other judges: {', '.join(told)}"] if told else []


CLAIMS = (
    Claim(
        "C2",
        "VIV is among the most stable predictors of gFID",
        "Diffusing in the Right Space: Pearson 0.87 (SiT-B, 43 tokenizers)",
        stable_predictor,
    ),
    Claim("C3", "LNC stands in for linear probing", "Diffusing in the Right Space: r = 0.993", stands_in),
    Claim(
        "C4",
        "LNC and SRSS together explain gFID better than either",
        "Diffusing in the Right Space: R^2 = 0.91 of the fitted sample",
        together,
    ),
    Claim(
        "C5",
        "Better latents give straighter ODE trajectories",
        "Diffusing in the Right Space: r about -0.83 (straightness) and -0.90 (efficiency)",
        straighter,
    ),
    Claim(
        "C7",
        "Equivariance, uniformity and continuity predict less; equivariance least",
        "Diffusing in the Right Space: figure 4, no numbers",
        predict_less,
    ),
    Claim(
        "C8",
        "Fewer GMM modes and higher linear-probe accuracy go with lower diffusion loss and gFID",
        "MAETok: figures 2 and 5, no numbers",
        modes_and_probing,
    ),
)
