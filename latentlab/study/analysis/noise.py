"""How far targets can be trusted: noise between repeats, and whether settings and judges rank tokenizers alike."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import pandas as pd

from analyses.noise_ceiling import noise_ceiling
from analyses.ranking_stability import ranking_stability
from latentlab.errors import UserError
from latentlab.study.analysis.correlations import Record, Refuse
from latentlab.study.analysis.flags import dependent_tokenizers, fairly_judged
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import Points, rows_of
from latentlab.study.table import StudyTable


def stability_records(plan: AnalysisPlan, cells: Sequence[Points], refuse: Refuse) -> Iterator[Record]:
    """Yield how alike every two settings rank the fairly judged tokenizers that both have, by every target."""
    for target in plan.targets:
        judged = [cell for cell in cells if cell.known([target])]
        values = {cell.setting: fairly_judged(plan, target, cell.all)[target] for cell in judged}
        for first, second in combinations(judged, 2):
            both = pd.concat([values[first.setting], values[second.setting]], axis=1, join="inner")
            try:
                found = _agreement(both, plan)
            except UserError as error:
                refuse(f"ranking by {target} against {second.setting}", first, error)
                continue
            yield {"target": target, "first": first.setting.facts(), "second": second.setting.facts(), **found}


def judge_records(plan: AnalysisPlan, cell: Points, refuse: Refuse) -> Iterator[Record]:
    """Yield how alike every two targets rank the tokenizers of a setting, those left out that learned from either judge."""
    rows = cell.all
    for first, second in combinations(cell.known(plan.targets), 2):
        learned = [label for target in (first, second) for label in dependent_tokenizers(plan, target, rows)]
        try:
            found = _agreement(rows.drop(index=learned, errors="ignore")[[first, second]], plan)
        except UserError as error:
            refuse(f"ranking by {first} against {second}", cell, error)
            continue
        yield {
            "first": first,
            "second": second,
            **cell.setting.facts(),
            **found,
            "without": list(dict.fromkeys(learned)),
        }


def _agreement(both: pd.DataFrame, plan: AnalysisPlan) -> Record:
    """Return how alike two columns rank the rows that have both."""
    known = both.dropna()
    found = ranking_stability(known.iloc[:, 0].to_numpy(float), known.iloc[:, 1].to_numpy(float), plan.seed)
    low, high = found.interval or (None, None)
    return {"n": found.n, "spearman": found.spearman, "kendall": found.kendall, "low": low, "high": high}


def noise_records(table: StudyTable, plan: AnalysisPlan, cell: Points, refuse: Refuse) -> Iterator[Record]:
    """Yield the noise of every target that was repeated.

    A unit is a trained tokenizer, a repeat another seed of its generator: that is the noise no measurement of the tokenizer can
    foresee. How much another seed of the tokenizer moves the target stands beside it. Tokenizers that learned from the judge
    would lie apart from the others, and make the noise look small.
    """
    rows = rows_of(table, cell.setting)
    for target in plan.targets:
        known = rows[~rows["cluster"].isin(plan.learned_from(target))].dropna(subset=[target])
        units = known["tokenizer"].astype(str) + " " + known["tokenizer_seed"].astype(str)
        if units.nunique() < 2 or not units.duplicated().any():
            if known["generator_seed"].notna().any():  # a table without seeds has no noise to speak of
                refuse(
                    f"noise of {target}", cell, UserError("no trained tokenizer was judged with two generator seeds")
                )
            continue
        found = noise_ceiling(known[target].to_numpy(float), units.to_numpy())
        yield {
            "target": target, "scale": plan.scale_of(target), **cell.setting.facts(), "n": found.n, "repeats": found.repeats,
            "between_sd": found.between_sd, "within_sd": found.within_sd, "ceiling": found.ceiling,
            "tokenizer_seed_sd": _of_tokenizer_seeds(known, target),
        }  # fmt: skip


def _of_tokenizer_seeds(rows: pd.DataFrame, target: str) -> float | None:
    """Return the standard deviation between trainings of one tokenizer, its generators averaged; None without repeats."""
    trained = rows.groupby(["tokenizer", "tokenizer_seed"])[target].mean()
    labels = trained.index.get_level_values("tokenizer")
    if labels.nunique() < 2 or not labels.duplicated().any():
        return None
    return noise_ceiling(trained.to_numpy(float), labels.to_numpy()).within_sd
