"""How well ways of predicting quality do on clusters they have not seen: ridge, the best single measurement, the mean."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from latentlab.study.predictor.file import Score, Target
from latentlab.study.predictor.ridge import fit_ridge, left_out_errors, ridge, standards

Model = Literal["mean", "single best", "ridge"]

Predicting = Callable[[np.ndarray], np.ndarray]
"""Measurements [n,p] -> predictions [n]."""

Fitting = Callable[[np.ndarray, np.ndarray, np.ndarray], Predicting]
"""Measurements [n,p], quality [n] and clusters [n] -> what predicts."""


def scores(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray, names: Sequence[str], target: Target
) -> tuple[Score, ...]:
    """Score the ridge against the mean and the single best measurement, each made anew without each cluster."""
    scaled = target.scaled(y)
    best = names[_single_best(x, scaled, clusters)]
    return (
        _score("mean", _left_out(_fit_mean, x, scaled, clusters), y, target),
        _score("single best", _left_out(_fit_single, x, scaled, clusters), y, target, best),
        _score("ridge", _left_out(_fit_all, x, scaled, clusters), y, target),
    )


def _left_out(fit: Fitting, x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the prediction of each tokenizer by what ``fit`` makes of the other clusters; all choices are made inside."""
    predicted = np.empty_like(y)
    for name in np.unique(clusters):
        own = clusters == name
        predicted[own] = fit(x[~own], y[~own], clusters[~own])(x[own])
    return predicted


def _fit_mean(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> Predicting:
    return lambda new: np.full(len(new), y.mean())


def _fit_all(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> Predicting:
    return fit_ridge(x, y, clusters).at


def _fit_single(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> Predicting:
    j = _single_best(x, y, clusters)
    line = ridge(x[:, [j]], y, 0.0)
    return lambda new: line.at(new[:, [j]])


def _single_best(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> int:
    """Return which measurement alone, by least squares, predicts left-out clusters best."""
    z, none = (x - x.mean(0)) / standards(x)[1], np.zeros(1)
    return int(np.argmin([(left_out_errors(z[:, [j]], y, clusters, none) ** 2).sum() for j in range(x.shape[1])]))


def _score(model: Model, predicted: np.ndarray, y: np.ndarray, target: Target, note: str = "") -> Score:
    values = np.array([target.unscaled(value) for value in predicted])
    squares = float(((values - y) ** 2).sum())
    return Score(
        model=model,
        rmse=math.sqrt(squares / len(y)),
        r2=1 - squares / float(((y - y.mean()) ** 2).sum()),
        spearman=None if model == "mean" else _rank_correlation(values, y),
        note=note,
    )


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Spearman's correlation, None where one of the two does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)
