"""C3, C4, C5 and C8: correlations over the tokenizers of the study."""

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence
from latentlab.claims.statistic import Statistic
from latentlab.claims.study_cells import StudyCells
from latentlab.claims.study_effects import (
    PREDICTS,
    PREDICTS_BECAUSE,
    correlation,
    each,
    effect,
    empty_cells,
    given_decoder,
    judgement,
    known,
    no_correlation,
    opened,
)
from latentlab.claims.verdict import Effect, Judgement, Side, short

_GOES_WITH, _GOES_WITH_BECAUSE = 0.3, "a medium association by Cohen's convention"
_LIKELIHOOD = "m_gmm.held-out NLL@"
"""Companions of the number of modes: nats per image at a number of components."""


def stands_in(evidence: Evidence) -> Judgement:
    """C3: Pearson's correlation of LNC with linear-probe accuracy over tokenizers."""
    study, _ = opened(evidence, "m_lnc", "m_linear_probe")
    found = correlation(study, "m_lnc", "m_linear_probe", "pearson")
    strong = effect("r of LNC with probe accuracy (Pearson)", found, 0.9, "above", "four fifths of the variance")
    notes = empty_cells(study, {"LNC with probe accuracy": ("m_lnc", "m_linear_probe")})
    return judgement(study, [(strong,)], notes)


def together(evidence: Evidence) -> Judgement:
    """C4: each of LNC and SRSS goes with gFD, either way, among tokenizers that are level in the other.

    Refuted where one of the two is known to go with it less than `_GOES_WITH`. No gain in R^2 decides: within the fitted sample
    a second predictor never lowers it, and of left-out tokenizers any costs about 1/n of it.
    """
    study, target = opened(evidence, "m_lnc", "m_srss")
    found = {
        "LNC with gFD, given SRSS": _beyond(study, "m_lnc", target, "m_srss"),
        "SRSS with gFD, given LNC": _beyond(study, "m_srss", target, "m_lnc"),
    }
    notes = [
        f"refuted within -{_GOES_WITH}..{_GOES_WITH}, less than {_GOES_WITH_BECAUSE}",
        *(
            f"r of {told} was expected below 0, as higher is easier in both"
            for told, one in found.items()
            if one.value > 0
        ),
        _predicted(study, target),
    ]
    return judgement(study, [_differs(f"r of {told}", one) for told, one in found.items()], notes)


def _differs(name: str, found: Statistic) -> tuple[Effect, Effect]:
    """Return that a correlation lies below 0 or above it."""
    below = effect(name, found, 0.0, "below", "adds anything", refuted_at=-_GOES_WITH)
    return below, effect(name, found, 0.0, "above", "adds anything", refuted_at=_GOES_WITH)


def _beyond(study: StudyCells, x: str, y: str, given: str) -> Statistic:
    """Return the partial rank correlation of two columns in every cell; `Missing` where no cell has one."""
    return known(study.partial_correlation(x, y, given), study, x, y, given)


def _predicted(study: StudyCells, target: str) -> str:
    """Say how well LNC and SRSS predict tokenizers that the fit has not seen."""
    both = ["m_lnc", "m_srss"]
    together, lnc, srss = (short(study.explained(names, target, both)) for names in (both, both[:1], both[1:]))
    return f"prediction of left-out tokenizers, R^2 of linear fits: together {together}, LNC {lnc}, SRSS {srss}"


def straighter(evidence: Evidence) -> Judgement:
    """C5: rank correlations of straightness and of efficiency of the ODE with gFD, both strongly negative."""
    names = ("straightness", "efficiency")
    study, target = opened(evidence, *names)
    effects = [
        effect(f"r of {name} with gFD", correlation(study, name, target), -PREDICTS, "below", PREDICTS_BECAUSE)
        for name in names
    ]
    notes = [
        *given_decoder(study, target, names),
        *empty_cells(study, {f"{name} with gFD": (name, target) for name in names}),
    ]
    return judgement(study, each(effects), notes)


def modes_and_probing(evidence: Evidence) -> Judgement:
    """C8: modes rise, and probe accuracy falls, with the generator's held-out loss and with gFD.

    Of modes speaks their number, or the held-out negative log-likelihood of a mixture of as many components for all: that is
    what the publication shows.
    """
    study, target = opened(evidence, "m_gmm", "m_linear_probe", "held_out_loss")
    outcomes = {"held-out loss": "held_out_loss", "gFD": target}
    modes = {"GMM modes": "m_gmm", **_likelihood(study)}
    probe = {"probe accuracy": "m_linear_probe"}
    conditions = [
        *(_goes_with(study, modes, outcome, "above") for outcome in outcomes.items()),
        *(_goes_with(study, probe, outcome, "below") for outcome in outcomes.items()),
    ]
    measured = {**modes, **probe}
    pairs = {f"{told} with {of}": (name, y) for told, name in measured.items() for of, y in outcomes.items()}
    notes = [*given_decoder(study, target, [*measured.values()]), *empty_cells(study, pairs)]
    return judgement(study, conditions, notes)


def _likelihood(study: StudyCells) -> dict[str, str]:
    """Return the likelihood with the most components, by what it is called; empty where the table has none."""
    names = [name for name in study.table.names("measurement") if name.startswith(_LIKELIHOOD) and study.has(name)]
    most = max(names, key=lambda name: int(name.removeprefix(_LIKELIHOOD)), default=None)
    return {} if most is None else {most.removeprefix("m_gmm."): most}


def _goes_with(study: StudyCells, measured: dict[str, str], outcome: tuple[str, str], side: Side) -> tuple[Effect, ...]:
    """Return that one of the measurements goes with an outcome (its name in words, its column).

    Raises:
        Missing: none of them has a correlation with it.
    """
    told, column = outcome
    found = {name: study.correlation(x, column) for name, x in measured.items()}
    there = {name: one for name, one in found.items() if one.n}
    if not there:
        raise no_correlation(study, *measured.values(), column)
    threshold = _GOES_WITH if side == "above" else -_GOES_WITH
    return tuple(
        effect(f"r of {name} with {told}", one, threshold, side, _GOES_WITH_BECAUSE) for name, one in there.items()
    )


CLAIMS = (
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
        "C8",
        "Fewer GMM modes and higher linear-probe accuracy go with lower diffusion loss and gFID",
        "MAETok: figures 2 and 5, no numbers",
        modes_and_probing,
    ),
)
