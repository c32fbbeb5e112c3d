"""The shape of a MIND model and of its diffusion process: one validated table, and the published sizes."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem

SINUSOID_WIDTH = 1024
"""Width of the fixed sinusoids of all coordinates of a token together, whatever the latent width."""


class MindConfig(BaseModel):
    """One MIND model. The defaults are MIND-B of the paper (arXiv 2606.00094, table S-3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: PositiveInt = 16384
    """v, number of tokens."""
    embed_dim: PositiveInt = 16
    """d, width of a token's embedding."""
    subvector_size: PositiveInt = 4
    """g, width of one sub-vector: an embedding is d/g points on spheres, each of norm 1."""
    hidden_size: PositiveInt = 768
    """Width of the blocks."""
    num_heads: PositiveInt = 12
    """Heads of attention."""
    num_blocks: PositiveInt = 14
    """Blocks."""
    cond_dim: PositiveInt = 128
    """c, width of the condition: time and class."""
    num_classes: PositiveInt = 1000
    """Class ids are 0 .. num_classes-1; id num_classes stands for "no class"."""
    tokens: PositiveInt = 256
    """l, tokens per image."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens; None for 1-D tokens."""

    noise_process: Literal["sqrt_t", "cosine", "flow", "ddpm_linear"] = "sqrt_t"
    """How signal and noise change over time (`mind.process`); ``sqrt_t`` is the published one."""
    noise_factor: PositiveFloat = 0.6
    """K1, standard deviation of the state at t=0."""
    signal_factor: PositiveFloat = 1.0
    """K2, scale of the embedding at t=1."""

    normalise: bool = True
    """Put embeddings on the product of spheres; off for the ablation of table 5."""
    embedding_init: Literal["released", "xavier", "normal"] = "released"
    """``released``: Xavier normal of gain 0.02; ``xavier``: of gain 1; ``normal``: N(0, 1)."""
    freq_init: Literal["xavier", "normal"] = "xavier"
    """Frequencies of the Fourier mapping: as the released code leaves them, or N(0, freq_std^2) as the paper says."""
    freq_std: PositiveFloat = 10.0
    """Standard deviation of frequencies that are drawn as ``normal``."""
    use_residual: bool = True
    """Whether the residual sinusoidal branch is there (table 9)."""
    rope: Literal["1d", "2d"] = "1d"
    """Rotary positions by the number of a token, or by its row and column."""
    rope_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the tables of rotary angles; the released run had them in bfloat16."""
    mapper_width: int = Field(0, ge=0)
    """Width of the Fourier mapping's hidden layers; 0 for the published max(512, 2 hidden_size)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._divides("subvector_size", self.subvector_size, "embed_dim", self.embed_dim)
        self._divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)
        if self.head_dim % (4 if self.rope == "2d" else 2):
            multiple = 4 if self.rope == "2d" else 2
            raise ValueError(
                f"rotary positions need a head width that is a multiple of {multiple}, got {self.head_dim}"
            )
        if self.use_residual and (SINUSOID_WIDTH % self.embed_dim or SINUSOID_WIDTH // self.embed_dim % 2):
            raise ValueError(
                f"embed_dim must divide {SINUSOID_WIDTH} with an even quotient for the residual branch, got "
                f"{self.embed_dim}: choose a power of two up to 512, or use_residual=false"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens:
            raise ValueError(f"grid {self.grid[0]}x{self.grid[1]} does not hold {self.tokens} tokens")
        if self.rope == "2d" and self.grid is None:
            raise ValueError("rope 2d needs grid: rows and columns of the tokens")
        return self

    @staticmethod
    def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
        if large % small:
            raise ValueError(f"{small_name} ({small}) must divide {large_name} ({large})")

    @property
    def null_class(self) -> int:
        """Class id that stands for "no class"."""
        return self.num_classes

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


SIZES: dict[str, dict[str, Any]] = {
    "mind-b": {},
    "mind-s": {
        "vocab_size": 8192, "embed_dim": 8, "subvector_size": 2, "noise_factor": 0.8,
        "hidden_size": 384, "num_heads": 6,
    },
    # The paper gives 715M parameters and no shape: DiT-XL's with a full-width condition has 714,912,001.
    "mind-xl": {"hidden_size": 1152, "num_heads": 16, "num_blocks": 28, "cond_dim": 1152},
    # For the embedded tokenizer: 8x8 codes out of 512, ten classes, weights of at most 8 MB in half precision.
    "mind-fashion": {
        "vocab_size": 512, "hidden_size": 192, "num_heads": 4, "num_blocks": 5, "cond_dim": 64, "num_classes": 10,
        "tokens": 64, "grid": (8, 8), "rope": "2d",
    },
}  # fmt: skip
"""The published sizes (MIND-B, MIND-S: table S-3) and the embedded one, as differences from the defaults."""


def sized(name: str, /, **overrides: Any) -> MindConfig:
    """Return a published size by name, with some fields changed.

    Raises:
        UserError: unknown size or field, or fields that do not fit each other.
    """
    if name not in SIZES:
        raise unknown_name("MIND size", name, SIZES)
    return read_config_fields({**SIZES[name], **overrides})


def read_config_fields(fields: Mapping[str, Any]) -> MindConfig:
    """Return the configuration with these fields.

    Raises:
        UserError: unknown field, or fields that do not fit each other; says which.
    """
    try:
        return MindConfig.model_validate(dict(fields))
    except ValidationError as error:
        raise UserError(f"MIND model: {first_problem(error)}") from error
