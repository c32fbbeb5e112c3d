"""What tests of the analysis ask, of which table, and how they find a record."""

from dataclasses import replace

from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.table import StudyTable

from .example_study import example_study

TARGET = "gfd_fashion_classifier"
PLAN = AnalysisPlan(targets=(TARGET,), predictors=("m_viv", "m_lnc", "m_cds"), covariates=("decoder_sensitivity",))


def one_setting(**changes) -> StudyTable:
    """Return the study under one generator and guidance scale; ``changes``: column -> values of its 48 rows."""
    study = example_study(generators=("sit",))
    rows = study.rows[study.rows["guidance"] == 1.5].reset_index(drop=True)
    return replace(study, rows=rows.assign(**changes))


def only(records, **facts):
    found = [one for one in records if all(one[key] == value for key, value in facts.items())]
    assert len(found) == 1, (len(found), facts)
    return found[0]
