"""The analysis of a study: what goes with quality, how surely, and what to beware of; ``analysis.json``.

    table, plan --> points (one per tokenizer and setting) --> primary, correlations, pairs, prediction, mixed
                                                          \\--> stability, judges, noise, flags
    table, plan --> controls, reactions

All parts are lists of flat records; a part that could not be computed is absent from its list and named in ``warnings``.
"""

import json
from pathlib import Path
from typing import Any

from analyses.correlation import FEWEST
from analyses.resampling import PERMUTATIONS, REPLICATES
from latentlab.errors import UserError
from latentlab.files import file_sha256, write_text
from latentlab.study.analysis.controls import control_records
from latentlab.study.analysis.correlations import correlation_records, mixed_records
from latentlab.study.analysis.flags import find_flags
from latentlab.study.analysis.noise import judge_records, noise_records, stability_records
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import ALL_ROWS, Points, on_scale, points, settings
from latentlab.study.analysis.primary import primary_records
from latentlab.study.analysis.reactions import reaction_records
from latentlab.study.analysis.regressions import pair_records, prediction_records
from latentlab.study.table import TABLE_KEY, StudyTable

FILE = "analysis.json"
PARTS = (
    "primary", "correlations", "pairs", "prediction", "stability", "judges", "noise", "mixed", "controls", "reactions", "flags",
)  # fmt: skip


class _Refusals:
    """What could not be computed, and where; the same reason in several settings is told once."""

    def __init__(self) -> None:
        self._where: dict[tuple[str, str], dict[str, None]] = {}

    def __call__(self, what: str, cell: Points, error: UserError) -> None:
        self._where.setdefault((what, str(error)), {})[str(cell.setting)] = None

    def lines(self) -> list[str]:
        """Return one line per thing and reason."""
        return [
            f"{what}: not computed: {why}" + ("" if [*where] == [ALL_ROWS] else f" ({'; '.join(where)})")
            for (what, why), where in self._where.items()
        ]


def analyse(table: StudyTable, plan: AnalysisPlan) -> dict[str, Any]:
    """Return the analysis of a study as plain values for JSON.

    Controls are left out of everything but ``controls`` and ``reactions``; held-out tokenizers of every fit and correlation, but
    not of the primary question, correlations within groups, stability, noise and reactions. Those that learned from a judge are
    left out where it judges. Repeats (seeds) are averaged.

    Raises:
        UserError: a column is missing or holds no numbers, or no setting has 5 tokenizers to correlate.
    """
    plan = plan.for_table(table)
    plain, table = table, on_scale(table, plan.logarithms)
    cells = [points(table, setting, plan.held_out) for setting in settings(table)]
    cells = [one for one in cells if one.known(plan.targets)]
    _check_size(plan, cells)
    refuse, warnings = _Refusals(), list[str]()
    found: dict[str, list[Any]] = {part: [] for part in PARTS}
    for cell in cells:
        here = plan.model_copy(update={"targets": cell.known(plan.targets)})
        found["correlations"] += correlation_records(table, here, cell, refuse)
        found["pairs"] += pair_records(here, cell, refuse)
        found["prediction"] += prediction_records(here, cell, found["pairs"], refuse)
        found["judges"] += judge_records(here, cell, refuse)
        found["noise"] += noise_records(table, here, cell, refuse)
        found["mixed"] += mixed_records(here, cell, refuse) if plan.mixed else []
    found["primary"] += primary_records(table, plan, cells, warnings)
    found["stability"] += stability_records(plan, cells, refuse)
    found["reactions"] += reaction_records(table, plan, warnings)
    found["controls"] += control_records(plain, cells, warnings)
    flags = find_flags(table, plan, cells)
    found["flags"] = [one.record() for one in flags]
    if not found["correlations"]:
        raise UserError(f"nothing can be correlated: {refuse.lines()[0]}")
    resampling = {"replicates": REPLICATES, "permutations": PERMUTATIONS}
    told = [*(one.text for one in flags), *refuse.lines(), *warnings]
    return {"plan": {**plan.model_dump(mode="json"), **resampling}, **found, "warnings": told}


def _check_size(plan: AnalysisPlan, cells: list[Points]) -> None:
    largest = max((len(one.fitted.dropna(subset=[t])) for one in cells for t in plan.targets), default=0)
    if largest < FEWEST:
        raise UserError(
            f"correlations need at least {FEWEST} tokenizers with a value of {' or '.join(plan.targets)}, got {largest} "
            "(controls and held-out ones do not count)"
        )


def write_analysis(analysis: dict[str, Any], path: Path, table: Path) -> None:
    """Write ``analysis.json``, a line per record, so that it stays small and differences show.

    Args:
        analysis: of `analyse`.
        path: the file.
        table: the CSV file that was analysed; its hash is kept, so that the analysis of an earlier table is known as such.
    """
    lines = [f'"{TABLE_KEY}": {json.dumps(file_sha256(table))}']
    for key, value in analysis.items():
        if isinstance(value, list) and value:
            records = ",\n".join(json.dumps(one, allow_nan=False) for one in value)
            lines.append(f"{json.dumps(key)}: [\n{records}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
