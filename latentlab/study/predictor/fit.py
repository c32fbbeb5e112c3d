"""Making a predictor of generation quality from the table of a study."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from latentlab import __version__
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.predictor.domain import fit_domain
from latentlab.study.predictor.file import (
    Check,
    DataSet,
    Fit,
    Measured,
    Origin,
    Predictor,
    Reach,
    Setting,
    Tokenizer,
)
from latentlab.study.predictor.interval import LEVEL
from latentlab.study.predictor.predict import predict
from latentlab.study.predictor.ridge import RidgeFit, fit_ridge, standards
from latentlab.study.predictor.rows import PREFIX, Chosen, choose
from latentlab.study.predictor.scores import scores
from latentlab.study.table import StudyTable


def fit_predictor(
    study: StudyTable,
    target: str,
    generator: str,
    guidance: float,
    *,
    data: DataSet,
    settings: Mapping[str, Setting],
    measurements: Sequence[str] | None = None,
    plan: AnalysisPlan = AnalysisPlan(),
    title: str = "",
    table_sha256: str | None = None,
    command: str | None = None,
) -> Predictor:
    """Fit a predictor of one quality column under one generator and guidance scale.

    Seeds are averaged, so that every tokenizer counts once. Controls are not fitted, nor are held-out tokenizers: both are
    predicted for validation. Tokenizers that learned from the judge are neither.

    Args:
        study: its table.
        target: a column of quality.
        generator: label of the generator.
        guidance: the scale.
        data: images that were measured.
        settings: of every measurement, by registered name.
        measurements: registered names to use; all that at least three quarters of the tokenizers have by default.
        plan: the study's own, which says which clusters learned from which judge.
        title: name of the study.
        table_sha256: of its file.
        command: for the record.

    Raises:
        UserError: unknown names, or too few tokenizers or clusters.
    """
    chosen = choose(study, target, generator, guidance, measurements, plan.learned_from(target))
    origin = Origin(
        study=title, table_sha256=table_sha256, left_out=chosen.dropped, command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"), latentlab=__version__,
    )  # fmt: skip
    predictor = _fit(chosen, data, settings, origin)
    checks = {"held_out": _checks(predictor, chosen.held_out), "controls": _checks(predictor, chosen.controls)}
    return predictor.model_copy(update=checks)


def _fit(chosen: Chosen, data: DataSet, settings: Mapping[str, Setting], origin: Origin) -> Predictor:
    """Fit to all tokenizers and without each cluster; validate on the left-out ones."""
    x = chosen.fitted[[PREFIX + name for name in chosen.names]].to_numpy(np.float64)
    y = chosen.fitted[chosen.target.name].to_numpy(np.float64)
    clusters = chosen.fitted["cluster"].to_numpy(str)
    scaled = chosen.target.scaled(y)
    kept = {str(name): clusters != name for name in np.unique(clusters)}
    fits = {name: fit_ridge(x[rest], scaled[rest], clusters[rest]) for name, rest in kept.items()}
    left_out = [chosen.target.unscaled(float(fits[name].at(row))) for name, row in zip(clusters, x, strict=True)]
    domain = fit_domain(x, clusters)
    return Predictor(
        schema_version=1,
        target=chosen.target,
        data=data,
        measurements=_measured(chosen.names, x, settings),
        fit=_written(fit_ridge(x, scaled, clusters), None),
        fits=tuple(_written(fit, name) for name, fit in fits.items()),
        tokenizers=_tokenizers(chosen.fitted, y, left_out),
        level=LEVEL,
        reach=Reach(precision=tuple(map(tuple, domain.precision.tolist())), distances=tuple(domain.distances.tolist())),
        scores=scores(x, y, clusters, chosen.names, chosen.target),
        held_out=(),
        controls=(),
        origin=origin,
    )


def _measured(names: Sequence[str], x: np.ndarray, settings: Mapping[str, Setting]) -> tuple[Measured, ...]:
    mean, deviation = standards(x)
    return tuple(
        Measured(
            name=name, parameters=dict(settings[name].parameters), biased=settings[name].biased, mean=mean[j],
            deviation=deviation[j], low=x[:, j].min(), high=x[:, j].max(),
        )
        for j, name in enumerate(names)
    )  # fmt: skip


def _written(fit: RidgeFit, without: str | None) -> Fit:
    return Fit(
        without=without, intercept=fit.intercept, slopes=tuple(fit.slopes.tolist()), penalty=fit.penalty,
        degrees_of_freedom=fit.degrees_of_freedom,
    )  # fmt: skip


def _tokenizers(fitted: pd.DataFrame, y: np.ndarray, left_out: Sequence[float]) -> tuple[Tokenizer, ...]:
    rows = zip(fitted["tokenizer"], fitted["cluster"], y, left_out, strict=True)
    return tuple(Tokenizer(label=str(a), cluster=str(b), observed=c, left_out=d) for a, b, c, d in rows)


def _checks(predictor: Predictor, rows: pd.DataFrame) -> tuple[Check, ...]:
    """Predict the tokenizers in ``rows``, which were not fitted."""
    found = []
    for row in rows.to_dict("records"):
        said = predict(predictor, {m.name: float(row[PREFIX + m.name]) for m in predictor.measurements})
        found.append(
            Check(
                label=str(row["tokenizer"]), cluster=str(row["cluster"]), control=str(row["control"]),
                observed=row[predictor.target.name], predicted=said.value, low=said.low, high=said.high, factor=said.factor,
            )
        )  # fmt: skip
    return tuple(found)
