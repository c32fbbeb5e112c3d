"""Measurements by name: the built-in ones, those of plug-ins, and `measure`, which runs one on arrays or on a store."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from latentlab.errors import UserError, unknown_name
from latentlab.measurement import Measurement, MetricCard

if TYPE_CHECKING:
    from latentlab.latents import ArrayLike, Latents
    from latentlab.tokenizers.base import Tokenizer

ENTRY_POINTS = "latentlab.analyses"
"""Entry-point group through which other packages add measurements: ``name = "package.module:function"``."""

BUILTIN = {
    "viv": "analyses.viv:viv",
    "lnc": "analyses.lnc:lnc",
    "linear_probe": "analyses.linear_probe:linear_probe",
    "lds": "analyses.lds:lds",
    "cds": "analyses.cds:cds",
    "srss": "analyses.srss:srss",
    "rmsc": "analyses.rmsc:rmsc",
    "sec": "analyses.sec:sec",
    "gmm": "analyses.gmm:gmm",
    "uniformity": "analyses.uniformity:uniformity",
    "intrinsic_dimension": "analyses.intrinsic_dimension:intrinsic_dimension",
    "codebook": "analyses.codebook:codebook",
    "latent_statistics": "analyses.latent_statistics:latent_statistics",
    "ifid": "analyses.ifid:ifid",
    "reconstruction": "analyses.reconstruction:reconstruction",
    "equivariance": "analyses.equivariance:equivariance",
    "sensitivity": "analyses.sensitivity:sensitivity",
    "collapse": "analyses.collapse:collapse",
    "straightness": "analyses.straightness:straightness",
}

MeasurementFunction = Callable[..., Measurement]


def measurement(card: MetricCard) -> Callable[[MeasurementFunction], MeasurementFunction]:
    """Attach ``card`` to a measurement function ``f(latents: Latents, *, ...) -> Measurement``."""

    def attach(function: MeasurementFunction) -> MeasurementFunction:
        function.card = card  # type: ignore[attr-defined]
        return function

    return attach


@cache
def _locations() -> Mapping[str, str]:
    """Return name -> "module:function" for every registered measurement; the built-in ones cannot be replaced."""
    plugins = _plugins()
    clash = sorted(set(plugins) & set(BUILTIN))
    if clash:
        raise UserError(f"a plug-in registers the measurement '{clash[0]}', which latentlab has itself: rename it")
    return {**BUILTIN, **{name: point.value for name, point in plugins.items()}}


def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


def measurement_plugin(name: str) -> metadata.EntryPoint | None:
    """Return where another package registers the measurement ``name``; None of a built-in or unknown one."""
    return _plugins().get(name)


def measurement_names() -> list[str]:
    """Return the registered names, built-in ones first, without importing any of them."""
    return list(_locations())


def find_measurement(name: str) -> MeasurementFunction:
    """Return the measurement function registered as ``name``.

    Raises:
        UserError: no such measurement, or its plug-in cannot be imported.
    """
    locations = _locations()
    if name not in locations:
        raise unknown_name("measurement", name, locations)
    module, _, function = locations[name].partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the measurement '{name}' ({locations[name]}) cannot be imported: {error}") from error
    if not isinstance(getattr(found, "card", None), MetricCard):
        raise UserError(
            f"the measurement '{name}' ({locations[name]}) has no card: decorate it with @measurement(card)"
        )
    return found


def card_of(name: str) -> MetricCard:
    """Return the card of the measurement ``name``."""
    return find_measurement(name).card  # type: ignore[attr-defined]


def measurements() -> dict[str, MetricCard]:
    """Return every registered measurement's card by name."""
    return {name: card_of(name) for name in measurement_names()}


def measure(
    name: str,
    latents: "ArrayLike | None" = None,
    labels: "ArrayLike | None" = None,
    masks: "ArrayLike | None" = None,
    *,
    codes: "ArrayLike | None" = None,
    images: Any = None,
    tokenizer: "Tokenizer | None" = None,
    store: "Latents | str | Path | None" = None,
    **parameters: Any,
) -> Measurement:
    """Run one measurement on arrays or on a store.

    Args:
        name: a registered measurement (`measurements` lists them).
        latents: [n,c,h,w] or [n,l,c], numpy or torch.
        labels: [n] integers.
        masks: [n,H,W] bool, foreground at image or latent resolution.
        codes: [n,h,w] or [n,l] codebook indices of the latents.
        images: what the latents were made of, for the measurements that look at images: an `ImageSet`, or an array [n,3,H,W]
            of floats in [-1,1] or uint8.
        tokenizer: supplies ``encode``, ``decode`` and ``codebook``, which may also be given as parameters.
        store: a `LatentStore` (or any `Latents`, or the path of a store) instead of arrays.
        **parameters: the measurement's own (see its docstring).

    Raises:
        UserError: unknown name or parameter, wrong shapes, non-finite latents, or a missing input.
    """
    function = find_measurement(name)
    given = {**parameters, **_from_images(images, tokenizer, parameters.get("device", "cpu"))}
    known = keyword_parameters(function)
    offered = {key: value for key, value in given.items() if key in known or key in parameters}
    arguments = checked_parameters(name, offered)
    if not needs_latents(function):
        if latents is not None or store is not None:
            raise UserError(f"'{name}' does not look at latents: leave them out")
        check_needs(name, None, arguments)
        return function(**arguments)
    chosen = _chosen_latents(latents, labels, masks, codes, store)
    check_needs(name, chosen, arguments)
    return function(chosen, **arguments)


def _from_images(images: Any, tokenizer: "Tokenizer | None", device: str) -> dict[str, Any]:
    """Return ``images``, ``encode``, ``decode`` and ``codebook`` as far as they are given."""
    supplied: dict[str, Any] = {}
    if images is not None:
        from latentlab.pixels import as_pixels

        supplied["images"] = as_pixels(images)
    if tokenizer is not None:
        from latentlab.codec import codec_of
        from latentlab.tokenizers.base import Tokenizer

        if not isinstance(tokenizer, Tokenizer):
            hint = f": latentlab.load_tokenizer({tokenizer!r})" if isinstance(tokenizer, str) else ""
            raise UserError(f"tokenizer must be a Tokenizer, got {type(tokenizer).__name__}{hint}")

        codec = codec_of(tokenizer, device)
        supplied |= {"encode": codec.encode, "decode": codec.decode, "codebook": codec.codebook}
    return supplied


def _chosen_latents(
    latents: "ArrayLike | None",
    labels: "ArrayLike | None",
    masks: "ArrayLike | None",
    codes: "ArrayLike | None",
    store: "Latents | str | Path | None",
) -> "Latents":
    """Return the latents, from arrays or a store."""
    from latentlab.latents import ArrayLatents

    if latents is None and store is None and codes is not None:
        latents = _placeholder(codes)
    if latents is None and store is None:
        raise UserError("give latents (with labels and masks), or store")
    if latents is not None and store is not None:
        raise UserError("give either latents (with labels and masks) or store, not both")
    if store is None:
        return ArrayLatents(latents, labels=labels, masks=masks, codes=codes)  # type: ignore[arg-type]
    if labels is not None or masks is not None or codes is not None:
        raise UserError("labels, masks and codes belong to the store: give them only together with latents")
    if isinstance(store, str | Path):
        from latentlab.store import LatentStore

        return LatentStore(store)
    return store


def _placeholder(codes: "ArrayLike") -> "ArrayLike":
    """Return latents of zeros for ``codes`` [n,h,w] or [n,l] that come alone."""
    import torch

    from latentlab.latents import tensor_of

    shape = tensor_of("codes", codes).shape
    if len(shape) not in (2, 3):
        raise UserError(f"codes must be [n,h,w] or [n,l], got shape {list(shape)}")
    return torch.zeros((shape[0], 1, *shape[1:]) if len(shape) == 3 else (*shape, 1))


def keyword_parameters(function: MeasurementFunction) -> list[str]:
    """Return the names of the keyword parameters of a measurement function."""
    return [key for key, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY]


def needs_latents(function: MeasurementFunction) -> bool:
    """Return whether a measurement function takes latents: whether it has a positional parameter."""
    return any(p.kind != p.KEYWORD_ONLY for p in inspect.signature(function).parameters.values())


def checked_parameters(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` in the types that the measurement ``name`` declares.

    Raises:
        UserError: a parameter it does not have, a value of another type, or a negative seed.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    from latentlab.files import first_problem

    function = find_measurement(name)
    known = keyword_parameters(function)
    hints = get_type_hints(function)
    checked = {}
    for given, value in parameters.items():
        key = given if given in known else _PUBLISHED_NAMES.get(given, given)
        if key not in known:
            raise unknown_name(f"parameter of '{name}'", key, known)
        plain = _plain_value(key, value)
        try:
            checked[key] = TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
                plain
            )
        except ValidationError as error:
            if error.errors()[0]["type"] == "literal_error":  # a choice: the measurement itself names near misses
                checked[key] = plain
                continue
            raise UserError(f"parameter '{key}' of '{name}': {first_problem(error)}, got {str(value)[:60]}") from error
    if checked.get("seed", 0) < 0:
        raise UserError(f"seed must not be negative, got {checked['seed']}")
    return checked


_PUBLISHED_NAMES = {
    "C": "regularization",
    "covariance_type": "covariance",
    "dmax": "d_max",
    "dneg": "d_neg",
    "dpos": "d_pos",
    "num_iters": "iterations",
}
"""What published code and scikit-learn call parameters of ours."""


def _plain_value(key: str, value: Any) -> Any:
    """Return numpy's numbers and vectors as Python's, and a codebook as a tensor; anything else as it is."""
    if key == "codebook" and value is not None:
        from latentlab.latents import tensor_of

        return tensor_of(key, value)
    if hasattr(value, "tolist") and getattr(value, "ndim", 2) < 2 and key not in _ARRAYS:
        return value.tolist()
    return value


_ARRAYS = ("gallery_labels", "times", "trajectory")
"""Parameters that are arrays, not settings."""


def missing_needs(name: str, latents: "Latents | None", arguments: Mapping[str, Any] | None = None) -> list[str]:
    """Return which inputs the measurement ``name`` lacks: ``labels``, ``masks``, ``grid``, ``codes``, ``images``, ..."""
    given = arguments or {}
    present = {key: given[key] is not None for key in given}
    if latents is not None:
        present |= {
            "labels": latents.labels is not None,
            "masks": latents.has_masks,
            "grid": latents.grid is not None or given.get("grid") is not None,
            "codes": latents.has_codes,
        }
    return [need for need in card_of(name).needs if not present.get(need, False)]


_OF_LATENTS = ("labels", "masks", "grid", "codes")
_HOW = {
    "grid": "1-D tokens have no place in the image, unless you choose a layout with grid=(rows, columns)",
    "images": "give images=..., what the latents were made of",
    "encode": "give tokenizer=... or encode=...",
    "decode": "give tokenizer=... or decode=...",
}


def check_needs(name: str, latents: "Latents | None", arguments: Mapping[str, Any] | None = None) -> None:
    """Raise `UserError` when the measurement ``name`` lacks an input."""
    missing = missing_needs(name, latents, arguments)
    if missing:
        where = "these latents have none" if set(missing) & set(_OF_LATENTS) else "none is given"
        hints = "; ".join(_HOW[need] for need in missing if need in _HOW)
        raise UserError(f"'{name}' needs {' and '.join(missing)}, and {where}{': ' if hints else ''}{hints}")
