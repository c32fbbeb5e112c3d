"""A tokenizer that another package brings: opened, held to its specification, and its mistakes told as its own."""

from collections.abc import Callable, Mapping
from functools import wraps
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from latentlab.errors import UserError, is_out_of_memory
from latentlab.files import digest, file_sha256
from latentlab.latents import TokenizerSpec
from latentlab.runtime import say
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer

_BRIGHT = 1.5
"""Pixels lie in [-1,1]; decoders overshoot a little, and one that makes [0,255] by far."""


def open_plugin(
    point: EntryPoint, weights: str | Path | None, architecture: Mapping[str, Any] | None, release: str | None
) -> Tokenizer:
    """Call the factory of another package; what it returns tells its mistakes in one line, and is checked as it is used.

    Args:
        point: where the factory is.
        weights: given to it.
        architecture: given to it; part of what names the latents.
        release: what its specification must say; None for anything.

    Raises:
        UserError: it cannot be imported or called, or returns something else, or a specification that cannot be.
    """
    who = f"the tokenizer '{point.name}' ({point.value})"
    factory = _told(f"{who} cannot be imported", point.load)()
    tokenizer = _told(f"{who} cannot be opened", factory)(weights, architecture)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{who} gave a {type(tokenizer).__name__}, not a Tokenizer")
    _check_specification(who, point.name, getattr(tokenizer, "spec", None))
    if release not in (None, tokenizer.spec.release):
        raise UserError(f"{who} is a plug-in and has no releases but '{tokenizer.spec.release}': leave release out")
    tokenizer.overrides = {**tokenizer.overrides, **(architecture or {}), "plug-in": plugin_version(point)}
    return _guarded(who, tokenizer)


def plugin_version(point: EntryPoint) -> str:
    """Return what names the code of a plug-in: its package, the version, and a digest of its Python files.

    Those of the package of the entry point, or of its one file: neither is imported.
    """
    package = "" if point.dist is None else f"{point.dist.name} {point.dist.version} "
    try:
        spec = find_spec(point.module.partition(".")[0])
    except (ImportError, ValueError):  # ValueError: a module that was not imported from anywhere
        spec = None
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    code = [(str(file.relative_to(place)), file) for place in places for file in sorted(place.rglob("*.py"))]
    if spec is not None and not places and spec.origin is not None:
        code = [("", Path(spec.origin))]
    return f"{package}{digest([[where, file_sha256(file)] for where, file in code if file.is_file()])}"


def _check_specification(who: str, name: str, spec: Any) -> None:
    if not isinstance(spec, TokenizerSpec):
        raise UserError(f"{who} has no specification: set spec to a TokenizerSpec")
    if spec.name != name:
        raise UserError(f"{who} calls itself '{spec.name}' in its specification: both must be one name")
    hints = get_type_hints(TokenizerSpec)
    for field in ("kind", "layout"):
        if getattr(spec, field) not in get_args(hints[field]):
            known = ", ".join(get_args(hints[field]))
            raise UserError(f"{who} says {field}='{getattr(spec, field)}' in its specification: choose one of {known}")


def _guarded(who: str, tokenizer: Tokenizer) -> Tokenizer:
    """Give it a class of the same name, with a check around each method that latentlab calls."""
    kind = type(tokenizer)
    if getattr(kind, "guarded_by_latentlab", False):  # the factory returned an object that it had returned before
        return tokenizer
    checks: dict[str, Callable[[Tokenizer, Tensor, Any], None]] = {"encode": _check_latents, "decode": _check_images}
    if isinstance(tokenizer, DiscreteTokenizer):
        checks |= {"indices": _check_indices, "codes": _check_codes}
    methods = {name: _checked(who, name, getattr(kind, name), check) for name, check in checks.items()}
    tokenizer.__class__ = type(kind.__name__, (kind,), {**methods, "guarded_by_latentlab": True})
    return tokenizer


def _checked(
    who: str, name: str, method: Callable[..., Any], check: Callable[[Tokenizer, Tensor, Any], None]
) -> Callable[..., Any]:
    batched = list(signature(method).parameters)[1]

    @wraps(method)
    def call(self: Tokenizer, *given: Any, **options: Any) -> Any:
        batch: Tensor = given[0] if given else options[batched]
        found = _told(f"{name} of {who} failed, given {list(batch.shape)}", method)(self, *given, **options)
        try:
            check(self, batch, found)
        except UserError as error:
            raise UserError(f"{name} of {who} {error}") from error
        return found

    return call


def _told(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, whose errors are those of a plug-in: one line that begins with ``what``."""

    @wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        try:
            return function(*given, **options)
        except UserError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())
            raise UserError(f"{what}: {type(error).__name__}: {said} (latentlab --debug shows where)") from error

    return call


def _check_latents(tokenizer: Tokenizer, images: Tensor, latents: Any) -> None:
    spec = tokenizer.spec
    if not isinstance(latents, Tensor):
        raise UserError(f"must give a tensor, got {type(latents).__name__}")
    height, width = images.shape[2:]
    side = spec.downsampling if spec.layout == "grid" else None
    cells = (height // side, width // side) if side and height % side == 0 and width % side == 0 else ("h", "w")
    wanted = (len(images), spec.channels, *cells) if spec.layout == "grid" else (len(images), "l", spec.channels)
    fits = latents.ndim == len(wanted) and all(
        isinstance(size, str) or size == got for size, got in zip(wanted, latents.shape, strict=True)
    )
    if not fits:
        expected = ",".join(map(str, wanted))
        raise UserError(
            f"gave latents {list(latents.shape)} for images {list(images.shape)}, where its specification (layout {spec.layout}, "
            f"{spec.channels} channels, downsampling {spec.downsampling}) says [{expected}]"
        )


def _check_images(tokenizer: Tokenizer, latents: Tensor, images: Any) -> None:
    if not isinstance(images, Tensor):
        raise UserError(f"must give a tensor, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[:2] != (len(latents), 3):
        raise UserError(f"must give images [{len(latents)},3,H,W], got {list(images.shape)}")
    if not images.numel():
        return
    low, high = (float(end) for end in images.detach().aminmax())
    if (low < -_BRIGHT or high > _BRIGHT) and not getattr(tokenizer, "_told_of_range", False):
        tokenizer._told_of_range = True  # type: ignore[assignment]
        say(
            f"note: '{tokenizer.spec.name}' decodes to values from {low:.3g} to {high:.3g}: pixels should lie in [-1,1]"
        )


def _check_indices(tokenizer: Tokenizer, images: Tensor, indices: Any) -> None:
    if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise UserError(f"must give whole numbers, got {got}")
    size = tokenizer.spec.codebook_size
    if size is not None and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        low, high = int(indices.min()), int(indices.max())
        raise UserError(f"gave indices from {low} to {high}, where its specification says {size} codes")


def _check_codes(tokenizer: Tokenizer, indices: Tensor, latents: Any) -> None:
    spec = tokenizer.spec
    wanted = [len(indices), spec.channels, *indices.shape[1:]]
    if spec.layout == "sequence":
        wanted = [*indices.shape, spec.channels]
    if not isinstance(latents, Tensor) or list(latents.shape) != wanted:
        got = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise UserError(f"must give latents {wanted} for indices {list(indices.shape)}, got {got}")
