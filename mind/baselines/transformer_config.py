"""The shape of a DiT, SiT or LightningDiT: one validated table, and the published sizes. Imports no torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem

Kind = Literal["sit", "dit", "lightningdit"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PARTS: dict[Kind, dict[str, Any]] = {
    "sit": {},
    "dit": {"learn_sigma": True},
    "lightningdit": {"position": "both", "norm": "rmsnorm", "ffn": "swiglu", "qk_norm": True},
}
"""What a kind takes where nothing else is said, as differences from the defaults of `TransformerConfig`."""


class TransformerConfig(BaseModel):
    """One transformer on continuous latents: DiT (arXiv 2212.09748), SiT (arXiv 2401.08740), LightningDiT (arXiv 2501.01423).

    The defaults are SiT-XL/2 on latents of 4 x 32 x 32 numbers; another ``kind`` changes those in `PARTS`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "sit"
    """What it is trained for: ``sit`` and ``lightningdit`` predict the velocity of a flow, ``dit`` the noise of DDPM."""
    depth: PositiveInt = 28
    width: PositiveInt = 1152
    heads: PositiveInt = 16
    patch: PositiveInt = 2
    """Side of the squares of a grid, or number of neighbours of a sequence, that become one token."""
    in_channels: PositiveInt = 4
    """c, channels of a latent."""
    input: tuple[PositiveInt, PositiveInt] | None = (32, 32)
    """Rows and columns of a latent [c,h,w]; None for latents that are sequences."""
    tokens: PositiveInt | None = None
    """l of a latent [l,c], instead of ``input``."""
    num_classes: PositiveInt = 1000
    """Class ids are 0 .. num_classes-1; id num_classes stands for "no class"."""
    learn_sigma: bool = False
    """Whether there are twice as many channels out: the second half is DDPM's variance. The published SiT has them and ignores
    them."""
    qk_norm: bool = False
    """Normalise queries and keys of every head."""
    position: Literal["sinusoidal", "rope", "both"] = "sinusoidal"
    """Fixed sinusoids added to the tokens, rotations of queries and keys, or both (the released LightningDiT)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    ffn: Literal["mlp", "swiglu"] = "mlp"

    @model_validator(mode="before")
    @classmethod
    def _with_parts_of_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = dict(values)
        if given.get("tokens") is not None:
            given.setdefault("input", None)
        parts = PARTS.get(given.get("kind", "sit"), {})  # an unknown kind is refused by its field
        return {**parts, **given}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.input is None) == (self.tokens is None):
            raise ValueError("give either input (rows and columns of a grid) or tokens (length of a sequence)")
        if any(side % self.patch for side in self.sides):
            sides = "x".join(map(str, self.sides))
            raise ValueError(f"patch ({self.patch}) must divide the latent's size ({sides})")
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
    def sides(self) -> tuple[int, ...]:
        """Size of a latent without its channels: (h, w) or (l,)."""
        return self.input or (self.tokens or 0,)

    @property
    def patches(self) -> tuple[int, ...]:
        """Tokens of the transformer along each side."""
        return tuple(side // self.patch for side in self.sides)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (c, h, w) or (l, c)."""
        return (self.in_channels, *self.input) if self.input else (*self.sides, self.in_channels)

    @property
    def out_channels(self) -> int:
        """Channels that the last layer computes."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def null_class(self) -> int:
        """Class id that stands for "no class"."""
        return self.num_classes

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


def sized(name: str, **overrides: Any) -> TransformerConfig:
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
