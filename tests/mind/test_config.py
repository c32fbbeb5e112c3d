import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from latentlab import UserError
from mind.config import SIZES, MindConfig, read_config_fields, sized


def test_the_defaults_are_mind_b() -> None:
    config = MindConfig()
    assert config == sized("mind-b")
    assert (config.vocab_size, config.embed_dim, config.subvector_size) == (16384, 16, 4)
    assert (config.hidden_size, config.num_heads, config.num_blocks, config.cond_dim) == (768, 12, 14, 128)
    assert (config.noise_factor, config.signal_factor, config.noise_process) == (0.6, 1.0, "sqrt_t")
    assert (config.num_classes, config.null_class, config.tokens, config.head_dim) == (1000, 1000, 256, 64)
    assert config.normalise and config.use_residual and config.rope == "1d"


def test_mind_s_and_xl() -> None:
    small, large = sized("mind-s"), sized("mind-xl")
    assert (small.vocab_size, small.embed_dim, small.subvector_size, small.noise_factor) == (8192, 8, 2, 0.8)
    assert (small.hidden_size, small.num_heads, small.num_blocks) == (384, 6, 14)
    assert (large.hidden_size, large.num_heads, large.num_blocks, large.cond_dim) == (1152, 16, 28, 1152)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_size_survives_json(name: str) -> None:
    assert MindConfig.model_validate_json(sized(name).model_dump_json()) == sized(name)


def test_sizes_can_be_changed_field_by_field() -> None:
    config = sized("mind-s", num_blocks=2, use_residual=False)
    assert (config.num_blocks, config.use_residual, config.hidden_size) == (2, False, 384)


def test_configurations_are_constants() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        MindConfig().hidden_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subvector_size": 3}, r"subvector_size \(3\) must divide embed_dim \(16\)"),
        ({"num_heads": 7}, r"num_heads \(7\) must divide hidden_size \(768\)"),
        ({"hidden_size": 12, "num_heads": 4}, "multiple of 2, got 3"),
        ({"hidden_size": 12, "num_heads": 2, "rope": "2d", "grid": (16, 16)}, "multiple of 4, got 6"),
        ({"embed_dim": 24}, "must divide 1024 with an even quotient.*got 24"),
        ({"embed_dim": 1024}, "must divide 1024 with an even quotient.*got 1024"),
        ({"grid": (8, 8)}, "grid 8x8 does not hold 256 tokens"),
        ({"rope": "2d"}, "rope 2d needs grid"),
        ({"noise_factor": 0}, "noise_factor: .*greater than 0"),
        ({"noise_process": "linear"}, "noise_process: .*'sqrt_t'"),
        ({"heads": 3}, "heads"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_config_fields(fields)
    assert "\n" not in str(caught.value)


def test_widths_that_do_fit() -> None:
    assert read_config_fields({"embed_dim": 512}).embed_dim == 512  # 2 sinusoids per coordinate
    assert read_config_fields({"embed_dim": 24, "use_residual": False}).embed_dim == 24


def test_an_unknown_size_is_named_with_near_misses() -> None:
    with pytest.raises(UserError, match=r"unknown MIND size 'mind-x'\. Did you mean mind-xl"):
        sized("mind-x")


def test_a_field_called_like_an_argument_is_an_unknown_field() -> None:
    with pytest.raises(UserError, match="MIND model: name: Extra inputs are not permitted"):
        sized("mind-b", **{"name": "mind-s"})


@pytest.mark.parametrize("module", ["mind", "mind.config", "mind.weight_files"])
def test_importing_it_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
