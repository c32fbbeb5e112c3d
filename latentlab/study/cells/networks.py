"""Which networks a measurement looks through: a part of its cell's key, as other weights give other numbers."""

import inspect
from collections.abc import Mapping
from typing import Any

from latentlab.quality.features import feature_extractor
from latentlab.quality.perceptual import perceptual_distance
from latentlab.registry import checked_parameters, find_measurement


def _weights_of_features(name: str) -> str:
    judge = feature_extractor(name)
    return judge.version or judge.name


_VERSIONS = {"extractor": _weights_of_features, "perceptual": lambda name: perceptual_distance(name).name}
"""Option that names a network -> what names its weights; ``auto`` becomes the one that is on this machine."""


def networks_of(measurement: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return, by option of a measurement, what names the network that the option or its default chooses.

    Raises:
        UserError: its weights are not on this machine.
    """
    given = checked_parameters(measurement, parameters)
    options = inspect.signature(find_measurement(measurement)).parameters
    chosen = {key: given.get(key, options[key].default) for key in _VERSIONS if key in options}
    return {key: _VERSIONS[key](name) for key, name in chosen.items() if isinstance(name, str)}
