"""Configurations that lie beside published weights as ``config.json``, in terms of `Architecture`. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

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

    NETWORKS: ClassVar[tuple[str, ...]] = ("AutoencoderKL", "AutoencoderKLFlux2")

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

    NETWORKS: ClassVar[tuple[str, ...]] = ()

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
        multiples = self.encoder_ch_mult or self.decoder_ch_mult  # one alone stands for both
        found = {"n_embed": self.codebook_size, "embed_dim": self.codebook_embed_dim, "ch_mult": multiples}
        if self.decoder_ch_mult not in ((), multiples):
            raise ValueError(
                f"encoder_ch_mult {self.encoder_ch_mult} and decoder_ch_mult {self.decoder_ch_mult} differ"
            )
        return Published({name: value for name, value in found.items() if value})


class LDMConfigFile(BaseModel):
    """Fields of the authors' configurations of latent diffusion's network that have another name here."""

    model_config = ConfigDict(extra="forbid")

    use_variational: bool = True

    def published(self) -> Published:
        """Return what was given."""
        return Published({"double_z": self.use_variational})


Dialect: TypeAlias = type[AutoencoderKLConfig | LlamaGenConfig]

DIALECTS: tuple[type[AutoencoderKLConfig | LlamaGenConfig | LDMConfigFile], ...] = (
    AutoencoderKLConfig,
    LlamaGenConfig,
    LDMConfigFile,
)

AS_HERE = frozenset({"in_channels", "z_channels", "use_quant_conv", "use_post_quant_conv", "batch_norm_eps"})
"""Published fields that have the same name and meaning here."""

WITHOUT_EFFECT = frozenset(
    {"sample_size", "force_upcast", "latents_mean", "latents_std", "batch_norm_momentum"}
    | {"codebook_show_usage", "commit_loss_beta", "entropy_loss_ratio", "dropout_p", "dropout"}
)
"""Published fields that only training or a pipeline reads."""


def without_section(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return architecture fields without those that have no effect, and those of the authors' section ``ddconfig`` among them."""
    section = fields.get("ddconfig", {})
    if not isinstance(section, Mapping):
        raise UserError(f"architecture field 'ddconfig' must be a table of fields, got {section!r}")
    flat = {**section, **{name: value for name, value in fields.items() if name != "ddconfig"}}
    return {name: value for name, value in flat.items() if name not in WITHOUT_EFFECT}


def translated(fields: Mapping[str, Any], source: str) -> Published:
    """Return what architecture fields say, whichever of the published names they came with.

    Args:
        fields: published names or ours; unknown ones stay as they are, for `read_architecture` to refuse.
        source: what the error begins with.

    Raises:
        UserError: a value that cannot be, or that no network here has.
    """
    rest = without_section(fields)
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


def published_config(path: Path, dialect: Dialect) -> Published:
    """Return what the ``config.json`` at ``path`` says about weights in the layout that ``dialect`` is published with.

    A file without any field of the dialect says something else and is left aside, as are unknown fields.

    Raises:
        UserError: not JSON, or a network that is not ours.
    """
    config = read_config(path)
    check_class(config, path, dialect.NETWORKS)
    if not set(dialect.model_fields).intersection(config):
        return Published({})
    known = (set(dialect.model_fields) | AS_HERE).intersection(config)
    return translated({name: config[name] for name in known}, str(path))


def check_class(config: Mapping[str, Any], path: Path, networks: Sequence[str]) -> None:
    """Raise `UserError` if the ``config.json`` at ``path`` names another class of diffusers than one of ``networks``."""
    found = config.get("_class_name")
    if found is not None and found not in networks:
        expected = f", not {' or '.join(networks)}" if networks else ""
        raise UserError(f"{path} describes {found}{expected}: it does not belong to the weights; move it away")


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in the ``config.json`` at ``path``; empty where there is none.

    Raises:
        UserError: not JSON.
    """
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
