"""State dicts as they are published -> the parameters of one module, or one error that lists all that does not fit."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from latentlab.tokenizers.layouts import as_convolutions, published_names
from latentlab.weight_fit import check_fits

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


def load_published(module: nn.Module, state: Mapping[str, Tensor], *, ema: bool, source: str) -> None:
    """Copy ``state`` into ``module``, whose parameter names are the authors'; those of `layouts` are understood too.

    Args:
        module: receives every one of its parameters, in its own dtype.
        state: key -> tensor, without wrapper.
        ema: take the averaged weights when the file has them, as the authors' own evaluation does.
        source: what the error calls the file.

    Raises:
        UserError: anything is missing, left over or of another shape; lists the first few by the file's own names and says
            how many.
    """
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
    raw = {key: tensor for key, tensor in kept.items() if not key.startswith(EMA)}
    averaged = {key: tensor for key, tensor in kept.items() if key.startswith(EMA) and key not in _BOOKKEEPING}
    own = module.state_dict()
    chosen = rename_ema(averaged, own) if ema and averaged else raw
    names = published_names(own, chosen)
    expected = {names[name]: tensor for name, tensor in own.items()}
    chosen = as_convolutions(chosen, expected)
    remedy = ". Give the file that belongs to this tokenizer, or the fields of architecture that differ"
    check_fits(chosen, expected, f"{source} does not fit the architecture", remedy)
    module.load_state_dict({name: chosen[names[name]] for name in own})


def rename_ema(averaged: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return averaged weights under the module's own names; what belongs to none of them keeps its key.

    Lightning's EMA copies are stored under the parameter's name with every dot removed, which cannot be undone without
    knowing the names: ``model_ema.encoderconv_inweight`` is ``encoder.conv_in.weight``.
    """
    squashed: dict[str, str] = {}
    for name in names:
        key = EMA + name.replace(".", "")
        if key in squashed:
            raise RuntimeError(f"'{name}' and '{squashed[key]}' have the same name in the EMA weights")
        squashed[key] = name
    return {squashed.get(key, key): tensor for key, tensor in averaged.items()}
