"""What predictors say of an analysis: whether it was made as the study's measurements were, and then the prediction."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latentlab.errors import UserError
from latentlab.files import first_difference
from latentlab.measurement import Measurement
from latentlab.registry import card_of, checked_parameters, find_measurement
from latentlab.study.predictor.file import DataSet, Predictor, Setting, shipped_predictors
from latentlab.study.predictor.predict import no_prediction, predict

if TYPE_CHECKING:
    from latentlab.data.base import ImageSet
    from latentlab.results import Results

_SUPPLIED = ("seed", "device", "images", "encode", "decode", "codebook", "trajectory")
"""Arguments of a measurement that are no settings of it."""


def settings_of(name: str, given: Mapping[str, Any]) -> Setting:
    """Return how the measurement ``name`` is made when these of its parameters are ``given``.

    Raises:
        UserError: no such measurement or parameter, or a value of another type.
    """
    signature = inspect.signature(find_measurement(name)).parameters
    defaults = {key: p.default for key, p in signature.items() if p.default is not inspect.Parameter.empty}
    parameters = {**defaults, **checked_parameters(name, given)}
    settings = {key: value for key, value in parameters.items() if key not in _SUPPLIED}
    return Setting(json.loads(json.dumps(settings, default=str)), bool(card_of(name).bias))


def options_of_study(predictor: Predictor, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the parameters with which the predictor's study measured, where they are no defaults; ``given`` ones come first.

    Raises:
        UserError: a measurement or a parameter that this latentlab does not have.
    """
    options = {name: dict(parameters) for name, parameters in given.items()}
    for measured in predictor.measurements:
        usual = settings_of(measured.name, {}).parameters
        there = {key: value for key, value in measured.parameters.items() if key not in usual or usual[key] != value}
        if there:
            options[measured.name] = checked_parameters(measured.name, there) | options.get(measured.name, {})
    return options


def chosen_predictors(asked: Predictor | None, images: "ImageSet | None") -> tuple[Predictor, ...]:
    """Return the predictor that was asked for, else the shipped ones of the data set that ``images`` are of.

    Raises:
        UserError: a shipped one is damaged.
    """
    if asked is not None:
        return (asked,)
    return () if images is None else tuple(p for p in shipped_predictors() if _same_source(p.data.name, images.name))


def told_prediction(
    predictor: Predictor, results: "Results", options: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what ``predictor`` says of an analysis as JSON values; ``text`` is the line for people.

    Args:
        predictor: the fitted one.
        results: of the analysis.
        options: parameters that were given to its measurements.
    """
    target = predictor.target
    origin = {
        "target": target.name,
        "generator": target.generator,
        "guidance": target.guidance,
        "level": predictor.level,
        "tokenizers": len(predictor.tokenizers),
        "study": predictor.origin.study,
        "table_sha256": predictor.origin.table_sha256,
    }
    try:
        _check_data(predictor, results)
        _check_measurements(predictor, results, options)
        prediction = predict(predictor, {m.name: m.value for m in results.measurements})
    except UserError as error:
        unknown = dict.fromkeys(("value", "interval", "factor", "percentile"))
        return {**origin, **unknown, "outside": {}, "text": no_prediction(predictor, str(error))}
    return {**origin, **prediction.to_dict(), "text": prediction.sentence()}


def _check_data(predictor: Predictor, results: "Results") -> None:
    """Raise `UserError` unless the images are those of the study, or as many of an unbiased choice among them."""
    study, here = predictor.data, results.data
    if here is None:
        raise UserError(f"latents in a folder do not say what they are of; the study measured {_named(study)}")
    if study.fingerprint == here["fingerprint"]:
        return
    if not _same_source(study.name, here["name"]):
        raise UserError(f"measured on {here['name']}, the study on {_named(study)}")
    biased = [m.name for m in predictor.measurements if m.biased]
    if biased and here["n"] != study.n:
        raise UserError(
            f"measured on {here['n']:,} images, the study on {study.n:,}, and {', '.join(biased)} depends on their number"
        )
    if here["n"] == study.n and study.fingerprint is not None:
        raise UserError(f"measured on other images of {here['name']} than the study (or prepared in another way)")


def _named(data: DataSet) -> str:
    return f"{data.n:,} images of {data.name}"


def _same_source(first: str, second: str) -> bool:
    full = {"fashion": "fashion:test"}  # as `open_data` reads it
    return full.get(first, first) == full.get(second, second)


def _check_measurements(predictor: Predictor, results: "Results", options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `UserError` where a measurement is missing or was made with other parameters than in the study."""
    made: dict[str, Measurement] = {m.name: m for m in results.measurements}
    lacking = [m.name for m in predictor.measurements if m.name not in made]
    if lacking:
        raise UserError(f"it needs {', '.join(lacking)}, not measured here{_why(lacking, results)}")
    for measured in predictor.measurements:
        here = settings_of(measured.name, options.get(measured.name, {})).parameters
        if difference := first_difference(measured.parameters, dict(here)):
            raise UserError(
                f"{measured.name} was made in another way than in the study: {difference}; --predictor FILE without --set "
                f"{measured.name}... makes it as there"
            )


def _why(lacking: Sequence[str], results: "Results") -> str:
    reasons = [results.refused[name] for name in lacking if name in results.refused]
    return f" ({reasons[0]})" if reasons else ""
