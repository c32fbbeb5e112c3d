"""Names, defaults of each kind, and what does not fit."""

from typing import Any

import pytest

from latentlab.errors import UserError
from mind.baselines.transformer_config import NAMES, TransformerConfig, read_transformer_fields, sized


def test_published_sizes_have_the_published_shapes() -> None:
    shapes = {name: (c.depth, c.width, c.heads) for name in NAMES for c in [sized(name)]}
    for kind in ("sit", "dit", "lightningdit"):
        assert shapes[f"{kind}-s"] == (12, 384, 6)
        assert shapes[f"{kind}-b"] == (12, 768, 12)
        assert shapes[f"{kind}-l"] == (24, 1024, 16)
        assert shapes[f"{kind}-xl"] == (28, 1152, 16)
    assert len(shapes) == 12


def test_kind_decides_the_parts_and_each_part_can_be_chosen() -> None:
    dit, light = sized("dit-b"), sized("lightningdit-b", patch=1, in_channels=32, input=(16, 16))
    assert (dit.out_channels, sized("sit-b").out_channels, light.out_channels) == (8, 4, 32)
    assert (light.norm, light.ffn, light.position, light.qk_norm) == ("rmsnorm", "swiglu", "rope", True)
    assert (dit.norm, dit.ffn, dit.position, dit.qk_norm) == ("layernorm", "mlp", "sinusoidal", False)
    assert sized("lightningdit-b", position="both", qk_norm=False).position == "both"
    assert sized("sit-b", qk_norm=True).qk_norm


def test_shapes_of_grids_and_sequences() -> None:
    grid = sized("sit-b", input=(16, 8), in_channels=3)
    assert (grid.latent_shape, grid.patches) == ((3, 16, 8), (8, 4))
    line = sized("sit-xl", tokens=128, in_channels=32, patch=1)
    assert (line.latent_shape, line.patches, line.input) == ((128, 32), (128,), None)


@pytest.mark.parametrize("name", ["dit-s", "lightningdit-xl", "sit-l"])
def test_json_and_back(name: str) -> None:
    for config in (sized(name), sized(name, tokens=64)):
        assert TransformerConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"patch": 3}, r"patch \(3\) must divide the latent's size \(32x32\)"),
        ({"tokens": 9}, r"patch \(2\) must divide the latent's size \(9\)"),
        ({"heads": 5}, r"heads \(5\) must divide width \(1152\)"),
        ({"tokens": 8, "input": (2, 2)}, "either input"),
        ({"input": None}, "either input"),
        ({"width": 6, "heads": 1}, "multiple of 4, got 6"),
        ({"width": 1000, "heads": 500, "position": "rope"}, "head width that is a multiple of 4, got 2"),
        ({"kind": "lightningdit", "learn_sigma": True}, "learn_sigma is for"),
        ({"kind": "sot"}, "kind"),
        ({"depht": 3}, "depht"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_transformer_fields(fields)


def test_misspelt_size() -> None:
    with pytest.raises(UserError, match=r"'sit-bb'\. Did you mean sit-b"):
        sized("sit-bb")


def test_a_field_called_like_an_argument_is_an_unknown_field() -> None:
    with pytest.raises(UserError, match="transformer: name: Extra inputs are not permitted"):
        sized("sit-b", **{"name": "dit-b"})
