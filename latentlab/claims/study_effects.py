"""What claims on the study of tokenizers share: its effects, its judgement, and notes that several of them need.

Correlations are Spearman's, over tokenizers, with the Fréchet distance of samples (gFD) on the study's own classifier; the
published ones are Pearson's, with gFID. What is said of every cell or of every measurement is a condition for each: the least
of several statistics comes out lower in resamplings than it is, so that its interval would refute what holds.
"""

from collections.abc import Iterable, Mapping, Sequence

from analyses.correlation import Method
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.intervals import replicate_ends
from latentlab.claims.statistic import Statistic
from latentlab.claims.study_cells import LEAST_TOKENIZERS, StudyCells
from latentlab.claims.verdict import Effect, Judgement, Side, with_ends

SOURCE = "diffusability/results.csv"
PREDICTS, PREDICTS_BECAUSE = 0.5, "a quarter of the variance of the ranks"
_DECODER = "decoder_sensitivity"


def opened(evidence: Evidence, *columns: str) -> tuple[StudyCells, str]:
    """Return the study, without tokenizers that learned from the judge, and the distance that quality is judged by.

    Raises:
        Missing: the study mixes sample sizes, or the study, its quality, or one of ``columns`` is not there or has no numbers.
    """
    study = evidence.cells
    refuse_mixed_sizes(study)
    targets = [name for name in study.targets if study.has(name)]
    absent = [name for name in columns if not study.has(name)] + ([] if targets else ["gfd_JUDGE"])
    if absent:
        raise Missing(f"{SOURCE} has no numbers in {', '.join(absent)}", study.command)
    return study.judged_fairly(targets[0]), targets[0]


def refuse_mixed_sizes(study: StudyCells) -> None:
    """Raise `Missing` where the study mixes sample sizes."""
    if study.sizes:
        raise Missing(
            f"{SOURCE} mixes sizes, and distances of unequal ones do not compare: {study.sizes}", study.command
        )


def correlation(study: StudyCells, x: str, y: str, method: Method = "spearman") -> Statistic:
    """Return the correlation of two columns in every cell.

    Raises:
        Missing: no cell has one.
    """
    return known(study.correlation(x, y, method), study, x, y)


def known(found: Statistic, study: StudyCells, *columns: str) -> Statistic:
    """Return a statistic of ``columns`` that some cell has.

    Raises:
        Missing: none has it.
    """
    if not found.n:
        raise no_correlation(study, *columns)
    return found


def no_correlation(study: StudyCells, *columns: str) -> Missing:
    """Return that no cell has a correlation of these columns, and why."""
    return Missing(f"no correlation in {SOURCE}: {study.why_none(*columns)}", study.command)


def effect(
    name: str, found: Statistic, threshold: float, side: Side, because: str, refuted_at: float | None = None
) -> Effect:
    """Return the mean of a statistic over cells as an effect of tokenizers."""
    return Effect(
        name, found.value, replicate_ends(found.replicates), found.n, "tokenizers", LEAST_TOKENIZERS, threshold, side,
        because, refuted_at,
    )  # fmt: skip


def judgement(
    study: StudyCells,
    conditions: Sequence[tuple[Effect, ...]],
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Judgement:
    """Return the judgement that all conditions must agree on."""
    told = [*notes, f"judged by {study.targets[0]}, controls left out", *study.left_out]
    return Judgement(conditions, study.scale(), study.command, SOURCE, told, missing)


def each(effects: Iterable[Effect]) -> list[tuple[Effect, ...]]:
    """Return a condition for each effect."""
    return [(one,) for one in effects]


def plain(name: str) -> str:
    """Return a measurement without the prefix of its column."""
    return name.removeprefix("m_")


def empty_cells(study: StudyCells, pairs: Mapping[str, tuple[str, str]]) -> list[str]:
    """Name the cells that have no correlation of the named ``pairs`` of columns: means are over the others."""
    names_by: dict[tuple[str, ...], list[str]] = {}
    for name, columns in pairs.items():
        names_by.setdefault(study.empty_cells(*columns), []).append(name)
    return [f"no r of {', '.join(names)} in {', '.join(cells)}" for cells, names in names_by.items() if cells]


def given_decoder(study: StudyCells, target: str, names: Sequence[str]) -> list[str]:
    """Say what is left of correlations with ``target`` among tokenizers whose decoders are equally sensitive.

    Empty where the table does not know their sensitivity.
    """
    if not study.has(_DECODER):
        return []
    told = []
    for name in names:
        also = level_in(study, name, target)
        found = study.partial_correlation(name, target, _DECODER, *also)
        value = with_ends(found.value, replicate_ends(found.replicates)) if found.n else "none"
        told.append(f"{plain(name)} {value}{''.join(f' (and {other})' for other in also)}")
    return [f"given {_DECODER}: r with gFD of {', '.join(told)}"]


def level_in(study: StudyCells, name: str, target: str) -> tuple[str, ...]:
    """Return what tokenizers must be level in where a measurement is correlated with ``target``: for iFID the judge's rFD.

    iFID is a distance of decoded images, so that like the target it contains what the decoder loses.
    """
    own = f"rfd_{target.removeprefix('gfd_')}"
    return (own,) if name == "m_ifid" and study.has(own) else ()
