"""The shape of a DiT, SiT or LightningDiT: one validated table, and the published sizes. Imports no torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import PositiveInt, ValidationError, model_validator

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem
from mind.baselines.latent_shape import LatentShape

Kind = Literal["sit", "dit", "lightningdit"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PARTS: dict[Kind, dict[str, Any]] = {
    "sit": {},
    "dit": {"learn_sigma": True},
    "lightningdit": {"position": "rope", "norm": "rmsnorm", "ffn": "swiglu", "qk_norm": True},
}
"""What a kind takes where nothing else is said, as differences from the defaults of `TransformerConfig`."""


class TransformerConfig(LatentShape):
    """One transformer on continuous latents: DiT (arXiv 2212.09748), SiT (arXiv 2401.08740), LightningDiT (arXiv 2501.01423).

    The defaults are SiT-XL/2 on latents of 4 x 32 x 32 numbers; another ``kind`` changes those in `PARTS`.
    """

    kind: Kind = "sit"
    """What it is trained for: ``sit`` and ``lightningdit`` predict the velocity of a flow, ``dit`` the noise of DDPM."""
    depth: PositiveInt = 28
    """Blocks."""
    width: PositiveInt = 1152
    """Of the blocks."""
    heads: PositiveInt = 16
    """Heads of attention."""
    patch: PositiveInt = 2
    in_channels: PositiveInt = 4
    input: tuple[PositiveInt, PositiveInt] | None = (32, 32)
    learn_sigma: bool = False
    """Whether there are twice as many channels out: the second half is DDPM's variance. The published SiT has them and ignores
    them."""
    qk_norm: bool = False
    """Normalise queries and keys of every head. On for LightningDiT, for stability; its released XL model was trained without."""
    position: Literal["sinusoidal", "rope", "both"] = "sinusoidal"
    """Fixed sinusoids added to the tokens (DiT, SiT), or rotations of queries and keys (LightningDiT as arXiv 2606.03578 and
    2502.03444 train it). ``both``: the released code of LightningDiT adds the sinusoids as well; its checkpoints have them."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Of the blocks."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward layer of a block."""

    @model_validator(mode="before")
    @classmethod
    def _with_parts_of_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**PARTS.get(values.get("kind", "sit"), {}), **values}  # an unknown kind is refused by its field

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        axes = len(self.sides)
        if self.position != "rope" and self.width % (2 * axes):
            raise ValueError(f"sinusoidal positions need a width that is a multiple of {2 * axes}, got {self.width}")
        if self.position != "sinusoidal" and self.head_dim % (2 * axes):
            raise ValueError(
                f"rotary positions need a head width that is a multiple of {2 * axes}, got {self.head_dim}"
            )
        if self.kind == "lightningdit" and self.learn_sigma:
            raise ValueError("learn_sigma is for the kinds dit and sit")
        return self

    @property
    def out_channels(self) -> int:
        """Channels that the last layer computes."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


SIZES: dict[str, dict[str, int]] = {
    "s": {"depth": 12, "width": 384, "heads": 6},
    "b": {"depth": 12, "width": 768, "heads": 12},
    "l": {"depth": 24, "width": 1024, "heads": 16},
    "xl": {"depth": 28, "width": 1152, "heads": 16},
}
"""The published sizes S, B, L, XL: 33, 130, 458 and 675 million parameters (DiT, arXiv 2212.09748, table 1)."""

NAMES: tuple[str, ...] = tuple(f"{kind}-{size}" for kind in KINDS for size in SIZES)
"""Names that `sized` knows: ``sit-b``, ``lightningdit-xl``, ..."""


def sized(name: str, /, **overrides: Any) -> TransformerConfig:
    """Return a published size by name (``sit-b``), with some fields changed.

    Raises:
        UserError: unknown size or field, or fields that do not fit each other.
    """
    if name not in NAMES:
        raise unknown_name("transformer size", name, NAMES)
    kind, _, size = name.partition("-")
    return read_transformer_fields({"kind": kind, **SIZES[size], **overrides})


def read_transformer_fields(fields: Mapping[str, Any]) -> TransformerConfig:
    """Return the configuration with these fields.

    Raises:
        UserError: unknown field, or fields that do not fit each other; says which.
    """
    try:
        return TransformerConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise UserError(f"transformer: {first_problem(error)}") from error
