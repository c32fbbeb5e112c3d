"""How far targets can be trusted: noise between repeats, and whether settings rank tokenizers alike."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import pandas as pd

from analyses.noise_ceiling import noise_ceiling
from analyses.ranking_stability import ranking_stability
from latentlab.errors import UserError
from latentlab.study.analysis.correlations import Record, Refuse
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import Points, rows_of
from latentlab.study.table import StudyTable


def stability_records(plan: AnalysisPlan, cells: Sequence[Points], refuse: Refuse) -> Iterator[Record]:
    """Yield how alike every two settings rank the tokenizers that both have, by every target."""
    for target in plan.targets:
        judged = [cell for cell in cells if cell.known([target])]
        values = {cell.setting: cell.all[target] for cell in judged}
        for first, second in combinations(judged, 2):
            both = pd.concat([values[first.setting], values[second.setting]], axis=1, join="inner").dropna()
            try:
                found = ranking_stability(both.iloc[:, 0].to_numpy(float), both.iloc[:, 1].to_numpy(float), plan.seed)
            except UserError as error:
                refuse(f"ranking by {target} against {second.setting}", first, error)
                continue
            low, high = found.interval or (None, None)
            yield {
                "target": target, "first": first.setting.facts(), "second": second.setting.facts(), "n": found.n,
                "spearman": found.spearman, "kendall": found.kendall, "low": low, "high": high,
            }  # fmt: skip


def noise_records(table: StudyTable, plan: AnalysisPlan, cell: Points) -> Iterator[Record]:
    """Yield the noise of every target that was repeated.

    A unit is a trained tokenizer, a repeat another seed of its generator: that is the noise no measurement of the tokenizer can
    foresee. How much another seed of the tokenizer moves the target stands beside it.
    """
    rows = rows_of(table, cell.setting)
    for target in plan.targets:
        known = rows.dropna(subset=[target])
        units = known["tokenizer"].astype(str) + " " + known["tokenizer_seed"].astype(str)
        if units.nunique() < 2 or not units.duplicated().any():
            continue
        found = noise_ceiling(known[target].to_numpy(float), units.to_numpy())
        yield {
            "target": target, **cell.setting.facts(), "n": found.n, "repeats": found.repeats, "between_sd": found.between_sd,
            "within_sd": found.within_sd, "ceiling": found.ceiling, "tokenizer_seed_sd": _of_tokenizer_seeds(known, target),
        }  # fmt: skip


def _of_tokenizer_seeds(rows: pd.DataFrame, target: str) -> float | None:
    """Return the standard deviation between trainings of one tokenizer, its generators averaged; None without repeats."""
    trained = rows.groupby(["tokenizer", "tokenizer_seed"])[target].mean()
    labels = trained.index.get_level_values("tokenizer")
    if labels.nunique() < 2 or not labels.duplicated().any():
        return None
    return noise_ceiling(trained.to_numpy(float), labels.to_numpy()).within_sd
