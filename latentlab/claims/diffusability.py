"""C2, C3, C4, C5, C7 and C8, from the table of the study of tokenizers.

Correlations are Spearman's, over tokenizers, with the Fréchet distance of samples (gFD) on the study's own classifier; the
published ones are Pearson's, with gFID.
"""

from collections.abc import Mapping

import numpy as np

from analyses.correlation import Method
from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.intervals import replicate_ends
from latentlab.claims.statistic import Statistic, average, place, smallest
from latentlab.claims.study_cells import LEAST_TOKENIZERS, StudyCells
from latentlab.claims.verdict import Effect, Judgement, Side, short

SOURCE = "diffusability/results.csv"
_PREDICTS, _PREDICTS_BECAUSE = 0.5, "a quarter of the variance of the ranks"
_GOES_WITH, _GOES_WITH_BECAUSE = 0.3, "a medium association by Cohen's convention"
_WEAK = {"m_equivariance": "equivariance", "m_uniformity": "uniformity", "m_ifid": "continuity"}


def stable_predictor(evidence: Evidence) -> Judgement:
    """C2: by |rank correlation| with gFD VIV is in the upper third of all measurements, and predicts in every cell."""
    study, target = opened(evidence, "m_viv")
    found = {name: correlation(study, name, target) for name in study.measurements}
    if "m_viv" not in found:
        raise Missing(
            f"m_viv in {SOURCE} is the same for all tokenizers, or absent for a quarter of them", study.command
        )
    if len(found) < 4:
        raise Missing(f"{SOURCE} has {len(found)} measurements, too few for an upper third", study.command)
    sizes = {name: one.map(np.abs) for name, one in found.items()}
    rank = place(sizes["m_viv"], [one for name, one in sizes.items() if name != "m_viv"])
    third = f"the upper third of {len(found)}"
    effects = [
        effect("place of VIV by |r| with gFD, as a share of all measurements", rank, 1 / 3, "below", third),
        effect("least r of VIV with gFD in any cell", found["m_viv"].least(), _PREDICTS, "above", _PREDICTS_BECAUSE),
    ]
    return judgement(study, effects, [listing(sizes), *_other_judges(study, "m_viv")])


def stands_in(evidence: Evidence) -> Judgement:
    """C3: Pearson's correlation of LNC with linear-probe accuracy over tokenizers."""
    study, _ = opened(evidence, "m_lnc", "m_linear_probe")
    found = correlation(study, "m_lnc", "m_linear_probe", "pearson")
    because = "four fifths of the variance"
    return judgement(study, [effect("r of LNC with probe accuracy (Pearson)", found, 0.9, "above", because)])


def together(evidence: Evidence) -> Judgement:
    """C4: R^2 of left-out tokenizers with LNC and SRSS together, less that with the better one alone, mean over cells.

    Left out, because within the fitted sample a second predictor never lowers R^2.
    """
    study, target = opened(evidence, "m_lnc", "m_srss")
    both = ["m_lnc", "m_srss"]
    pair, lnc, srss = (study.explained(names, target, both) for names in (both, both[:1], both[1:]))
    if not pair.n:
        raise Missing(f"{SOURCE} has no cell where 6 tokenizers have LNC, SRSS and gFD", study.command)
    better, name = max((lnc, "LNC"), (srss, "SRSS"), key=lambda one: one[0].value)
    gain = effect(f"gain in R^2 of left-out tokenizers over {name} alone", pair - better, 0.0, "above", "any gain")
    told = f"R^2 left out: together {short(pair.value)}, LNC {short(lnc.value)}, SRSS {short(srss.value)}"
    return judgement(study, [gain], [told])


def straighter(evidence: Evidence) -> Judgement:
    """C5: rank correlations of straightness and of efficiency of the ODE with gFD, both strongly negative."""
    study, target = opened(evidence, "straightness", "efficiency")
    effects = [
        effect(f"r of {name} with gFD", correlation(study, name, target), -_PREDICTS, "below", _PREDICTS_BECAUSE)
        for name in ("straightness", "efficiency")
    ]
    return judgement(study, effects)


def predict_less(evidence: Evidence) -> Judgement:
    """C7: mean |rank correlation| of the other measurements less that of the three; the least of all less equivariance's."""
    study, target = opened(evidence, *_WEAK)
    sizes = {
        name: correlation(study, name, target).map(np.abs) for name in {**dict.fromkeys(study.measurements), **_WEAK}
    }
    means = {name: one.mean() for name, one in sizes.items()}
    others = [one for name, one in means.items() if name not in _WEAK]
    if not others:
        raise Missing(f"{SOURCE} has no other measurements to compare with", study.command)
    gap = average(others) - average([means[name] for name in _WEAK])
    rest = smallest([one for name, one in means.items() if name != "m_equivariance"])
    effects = [
        effect("mean |r| of the other measurements less that of the three", gap, 0.0, "above", "less is less"),
        effect("least |r| of the rest less that of equivariance", rest - means["m_equivariance"], 0.0, "above", "last"),
    ]
    return judgement(study, effects, [listing(sizes), "continuity is taken to be iFID"])


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
    found = study.correlation(x, y, method)
    if not found.n:
        what = f"no cell of {SOURCE} has 4 tokenizers over which both {x} and {y} vary"
        raise Missing(what, study.command)
    return found


def effect(name: str, found: Statistic, threshold: float, side: Side, because: str) -> Effect:
    """Return the mean of a statistic over cells as an effect of tokenizers."""
    return Effect(
        name, found.value, replicate_ends(found.replicates), found.n, "tokenizers", LEAST_TOKENIZERS, threshold, side,
        because,
    )  # fmt: skip


def judgement(study: StudyCells, effects: list[Effect], notes: list[str] | None = None) -> Judgement:
    """Return the judgement that all effects must agree on."""
    judged = f"judged by {study.targets[0]}, controls left out"
    conditions = [(one,) for one in effects]
    return Judgement(conditions, study.scale(), study.command, SOURCE, [*(notes or []), judged, *study.left_out])


def listing(sizes: Mapping[str, Statistic]) -> str:
    """List the measurements by |r|, largest first."""
    order = sorted(sizes, key=lambda name: (-sizes[name].value, name))
    return "mean |r| with gFD: " + ", ".join(f"{name.removeprefix('m_')} {short(sizes[name].value)}" for name in order)


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
