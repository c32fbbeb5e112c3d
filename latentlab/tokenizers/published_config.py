"""Configurations that lie beside published weights as ``config.json``, in terms of `Architecture`. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentlab.errors import UserError
from latentlab.files import first_problem, read_json

Down: TypeAlias = Literal["DownEncoderBlock2D"]
Up: TypeAlias = Literal["UpDecoderBlock2D"]
Widths: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """What a published configuration says.

    Attributes:
        fields: of the architecture, under our names.
        shift: subtracted from latents by `normalize`; None where nothing is said.
        scale: multiplied by `normalize`; None where nothing is said.
    """

    fields: dict[str, Any]
    shift: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def __or__(self, other: "Published") -> "Published":
        """Return what both say; where they differ, the other."""
        return Published(self.fields | other.fields, other.shift or self.shift, other.scale or self.scale)


class AutoencoderKLConfig(BaseModel):
    """Fields of ``AutoencoderKL`` and ``AutoencoderKLFlux2`` of diffusers that have another name or another form here.

    Those with one possible value are checked, the others in ``WITHOUT_EFFECT`` are left aside.
    """

    model_config = ConfigDict(extra="forbid")

    block_out_channels: Widths = Field(default=(), min_length=1)
    decoder_block_out_channels: Widths | None = None
    layers_per_block: int = 0
    latent_channels: int = 0
    out_channels: int = 0
    norm_num_groups: int = 0
    patch_size: int | tuple[int, int] = 1
    scaling_factor: float = 1.0
    shift_factor: float | None = None
    act_fn: Literal["silu"] = "silu"
    mid_block_add_attention: Literal[True] = True
    down_block_types: tuple[Down, ...] = ()
    up_block_types: tuple[Up, ...] = ()

    def published(self) -> Published:
        """Return what was given.

        Raises:
            ValueError: widths that are no multiples of the first, or other multiples in the decoder; oblong patches.
        """
        given = self.model_fields_set
        fields = {ours: getattr(self, theirs) for theirs, names in RENAMED.items() if theirs in given for ours in names}
        fields |= self._widths()
        if "patch_size" in given:
            fields["patch_size"] = self._patch_side()
        shift = None if self.shift_factor is None else (self.shift_factor,)
        return Published(fields, shift, (self.scaling_factor,) if "scaling_factor" in given else None)

    def _widths(self) -> dict[str, Any]:
        encoder, decoder = self.block_out_channels, self.decoder_block_out_channels
        found: dict[str, Any] = {}
        if encoder:
            found |= {"ch": encoder[0], "ch_mult": _multiples(encoder)}
        if decoder:
            found["decoder_ch"] = decoder[0]
            if encoder and _multiples(decoder) != _multiples(encoder):
                raise ValueError("decoder_block_out_channels must be block_out_channels times one number")
        return found

    def _patch_side(self) -> int:
        sides = {self.patch_size} if isinstance(self.patch_size, int) else set(self.patch_size)
        if len(sides) > 1:
            raise ValueError(f"patch_size must be square, got {self.patch_size}")
        return sides.pop()


RENAMED = {
    "layers_per_block": ("num_res_blocks",),
    "latent_channels": ("z_channels", "embed_dim"),
    "out_channels": ("out_ch",),
    "norm_num_groups": ("norm_groups",),
}
"""Fields of `AutoencoderKLConfig` that are numbers here too, and what they are called."""


class LlamaGenConfig(BaseModel):
    """Fields of LlamaGen's ``ModelArgs`` that have another name here."""

    model_config = ConfigDict(extra="forbid")

    codebook_size: int = 0
    codebook_embed_dim: int = 0
    encoder_ch_mult: Widths = ()
    decoder_ch_mult: Widths = ()
    codebook_l2_norm: Literal[True] = True

    def published(self) -> Published:
        """Return what was given.

        Raises:
            ValueError: the decoder has other multiples than the encoder.
        """
        found = {"n_embed": self.codebook_size, "embed_dim": self.codebook_embed_dim, "ch_mult": self.encoder_ch_mult}
        if self.decoder_ch_mult != self.encoder_ch_mult:
            raise ValueError(
                f"encoder_ch_mult {self.encoder_ch_mult} and decoder_ch_mult {self.decoder_ch_mult} differ"
            )
        return Published({name: value for name, value in found.items() if value})


DIALECTS: tuple[type[AutoencoderKLConfig | LlamaGenConfig], ...] = (AutoencoderKLConfig, LlamaGenConfig)

AS_HERE = frozenset({"in_channels", "z_channels", "use_quant_conv", "use_post_quant_conv", "batch_norm_eps"})
"""Published fields that have the same name and meaning here."""

WITHOUT_EFFECT = frozenset(
    {"sample_size", "force_upcast", "latents_mean", "latents_std", "batch_norm_momentum"}
    | {"codebook_show_usage", "commit_loss_beta", "entropy_loss_ratio", "dropout_p"}
)
"""Published fields that only training or a pipeline reads."""


def translated(fields: Mapping[str, Any], source: str) -> Published:
    """Return what architecture fields say, whichever of the published names they came with.

    Args:
        fields: published names or ours; unknown ones stay as they are, for `read_architecture` to refuse.
        source: what the error begins with.

    Raises:
        UserError: a value that cannot be, or that no network here has.
    """
    rest = {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}
    found = Published({})
    for dialect in DIALECTS:
        given = {name: rest.pop(name) for name in dialect.model_fields if name in rest}
        try:
            found |= dialect.model_validate(given).published() if given else Published({})
        except ValidationError as error:
            raise UserError(f"{source}: {first_problem(error)}") from error
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error
    return found | Published(rest)


def config_beside(weights: Path) -> Published:
    """Return what ``config.json`` beside ``weights`` says.

    A file without any field that is published says something else and is left aside, as are unknown fields.

    Raises:
        UserError: not JSON, or a network that is not ours.
    """
    config = json_beside(weights)
    theirs = frozenset().union(*(dialect.model_fields for dialect in DIALECTS))
    if not theirs.intersection(config):
        return Published({})
    known = (theirs | AS_HERE).intersection(config)
    return translated({name: config[name] for name in known}, str(weights.parent / "config.json"))


def json_beside(weights: Path) -> dict[str, Any]:
    """Return the object in ``config.json`` beside ``weights``; empty where there is none.

    Raises:
        UserError: not JSON.
    """
    path = weights.parent / "config.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _multiples(widths: Widths) -> Widths:
    """Return each width as a multiple of the first.

    Raises:
        ValueError: one is not.
    """
    if not widths or any(width % widths[0] for width in widths):
        raise ValueError(f"every width must be a multiple of the first, got {list(widths)}")
    return tuple(width // widths[0] for width in widths)
