"""State dicts as they are published -> the parameters of one module, or one error that lists all that does not fit."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from latentlab.tokenizers.layouts import as_convolutions, published_names
from latentlab.weight_fit import check_finite, check_fits

UNUSED = (
    "loss.",
    "model_ema.loss",
    "foundation_model.",
    "linear_proj.",
    "quantize.codebook_used",
    "bn.num_batches_tracked",
)
"""How the keys of what only training needs begin: perceptual network, discriminator, aligned foundation model, counters."""

EMA = "model_ema."
_BOOKKEEPING = {EMA + name for name in ("decay", "num_updates")}
"""Left behind in files whose averaged weights were made the only ones, as in those of Stable Diffusion's autoencoder."""


def has_averages(state: Mapping[str, Tensor]) -> bool:
    """Whether a file with these keys holds averaged weights, or says that its only ones are."""
    return any(key.startswith(EMA) for key in state)


def remedy(config: Path | None = None) -> str:
    """Return what the error about weights that do not fit ends with; ``config`` is the file that some fields came from."""
    read = "" if config is None else f" from {config}"
    return (
        f". Give the file that belongs to this tokenizer, or the fields of architecture that differ{read} "
        "(--architecture FIELD=VALUE)"
    )


def load_published(
    module: nn.Module, state: Mapping[str, Tensor], *, ema: bool, source: str, config: Path | None = None
) -> None:
    """Copy ``state`` into ``module``, whose parameter names are the authors'; those of `layouts` are understood too.

    Args:
        module: receives every one of its parameters, in its own dtype.
        state: key -> tensor, without wrapper.
        ema: take the averaged weights when the file has them, as the authors' own evaluation does.
        source: what the error calls the file.
        config: the ``config.json`` that the module was built by, if one was read; for the error.

    Raises:
        UserError: anything is missing, left over, of another shape, NaN or infinite; lists the first few by the file's own
            names and says how many.
    """
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
    raw = {key: tensor for key, tensor in kept.items() if not key.startswith(EMA)}
    averaged = {key: tensor for key, tensor in kept.items() if key.startswith(EMA) and key not in _BOOKKEEPING}
    own = module.state_dict()
    averages = ema and bool(averaged)
    chosen = averaged if averages else raw
    names = ema_names(own) if averages else published_names(own, chosen)
    expected = {names[name]: tensor for name, tensor in own.items()}
    chosen = as_convolutions(chosen, expected)
    check_fits(chosen, expected, f"{source} does not fit the architecture", remedy(config))
    check_finite(chosen, source)
    module.load_state_dict({name: chosen[names[name]] for name in own})


def ema_names(names: Iterable[str]) -> dict[str, str]:
    """Return the module's own names, each with that of its averaged copy in a file.

    Lightning's EMA copies are stored under the parameter's name with every dot removed: ``model_ema.encoderconv_inweight``
    belongs to ``encoder.conv_in.weight``.
    """
    squashed: dict[str, str] = {}
    for name in names:
        key = EMA + name.replace(".", "")
        if key in squashed:
            raise RuntimeError(f"'{name}' and '{squashed[key]}' have the same name in the EMA weights")
        squashed[key] = name
    return {name: key for key, name in squashed.items()}
