"""The kinds of generator there are, and what everybody needs of one by name: configuration, recipe, sampler settings, weights.

Their modules are imported when one is asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentlab.errors import unknown_name
from latentlab.ranks import Ranks

if TYPE_CHECKING:
    import torch

    from mind.generate import ImageGenerator
    from mind.recipe import Recipe
    from mind.run_config import RunConfig

KINDS = ("mind", "sit", "lightningdit", "dit", "emigm")


def check_kind(kind: str) -> None:
    """Raise `UserError` unless ``kind`` is one of `KINDS`."""
    if kind not in KINDS:
        raise unknown_name("kind of generator", kind, KINDS)


def read_run(kind: str, config: str | Path, overrides: Sequence[str] = ()) -> "RunConfig":
    """Read the configuration of a training run.

    Args:
        kind: of `KINDS`.
        config: a YAML file, or the name of a shipped one (``mind-fashion``, ``sit-fashion``).
        overrides: ``a.b=value``, applied in order.

    Raises:
        UserError: unknown kind, no such file, not YAML, an unknown or missing key, a value out of range.
    """
    check_kind(kind)
    if kind == "mind":
        from mind.train_config import load_config

        return load_config(config, overrides)
    from mind.baselines.run_configs import load_run

    return load_run(kind, config, overrides)


def open_recipe(kind: str, config: "RunConfig", device: "torch.device", ranks: Ranks = Ranks()) -> "Recipe":
    """Open what a run trains on; latents that are not in the cache are encoded now, by all ``ranks``.

    Raises:
        UserError: data, tokenizer and model that do not fit each other, or sampler settings that do not exist.
    """
    asked: Any = config
    if kind == "mind":
        from mind.mind_recipe import MindRecipe

        return MindRecipe(asked, device, ranks)
    from mind.baselines.recipes import BaselineRecipe

    return BaselineRecipe(asked, device, ranks)


def check_settings(kind: str, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a sampler setting that the kind does not have, or a value that cannot be."""
    check_kind(kind)
    if kind == "mind":
        from mind.open_generator import sampler_settings

        sampler_settings(settings)
        return
    from mind.baselines.generators import sampler_settings as baseline_settings

    baseline_settings(kind, settings)


def open_weights(kind: str, weights: str | Path, **asked: Any) -> "ImageGenerator":
    """Return a trained generator, ready to draw.

    Args:
        kind: of `KINDS`.
        weights: what a run exported, or its folder.
        asked: ``settings``, ``tokenizer``, ``precision``, ``device``, ``averaged``; see `open_generator` and `open_baseline`.

    Raises:
        UserError: unknown kind; weights or tokenizer that are missing, damaged or do not fit each other, an unknown setting.
    """
    check_kind(kind)
    if kind == "mind":
        from mind.open_generator import open_generator

        return open_generator(weights, **asked)
    from mind.baselines.open import open_baseline

    return open_baseline(kind, weights, **asked)
