"""Operations of a training step against counts by hand."""

from pathlib import Path

import pytest
import torch

from mind.compute import parameter_count, step_operations, step_seconds
from mind.kinds import open_recipe, read_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))


def recipe(kind: str, base: str, **changes: object):
    common = ["data.limit=20", "data.mirror=false", "data.validation=null", "validate_every=0", "preview.grid_every=0"]
    return open_recipe(kind, read_run(kind, base, [*common, *(f"{k}={v}" for k, v in changes.items())]), CPU)


def test_transformer_by_hand() -> None:
    """SiT of 2 blocks, width 32, on 64 tokens of 8 numbers; a step is forward and backward: three products for one.

    Forward per image and block: 4 tokens-by-width^2 products for attention's maps, 2 for scores and values, 8 for the MLP, and 6
    width^2 for the modulation. Outside: patches in and out, and the embedding of the time (256 -> w -> w), whose input needs no
    gradient, as the patches' does not.
    """
    n, tokens, width, channels, blocks = 4, 64, 32, 8, 2
    opened = recipe("sit", "sit-fashion", **{
        "model.depth": blocks, "model.width": width, "model.heads": 2, "optimiser.batch_size": n,
    })  # fmt: skip
    block = 2 * tokens * width**2 * (4 + 8) + 2 * 2 * tokens**2 * width + 2 * 6 * width**2
    with_three = blocks * block + 2 * width**2 + 2 * 2 * width**2 + 2 * tokens * width * channels
    with_two = 2 * tokens * channels * width + 2 * 256 * width
    assert step_operations(opened) == pytest.approx(n * (3 * with_three + 2 * with_two), rel=0.01)


def test_batch_and_depth_scale_the_count() -> None:
    shape = {"model.hidden_size": 32, "model.num_heads": 2, "model.num_blocks": 1, "model.mapper_width": 32}
    one = recipe("mind", "mind-fashion", **shape, **{"optimiser.batch_size": 4})
    two = recipe("mind", "mind-fashion", **shape, **{"optimiser.batch_size": 8})
    deep = recipe("mind", "mind-fashion", **{**shape, "model.num_blocks": 3}, **{"optimiser.batch_size": 4})
    assert step_operations(two) == pytest.approx(2 * step_operations(one), rel=0.01)
    assert step_operations(deep) > 1.3 * step_operations(one)
    assert (
        parameter_count(deep)
        > parameter_count(one)
        == sum(p.numel() for p in one.network().parameters() if p.requires_grad)
    )


def test_masked_generator_is_averaged_over_steps() -> None:
    """An encoder that reads unmasked tokens only costs what the masks of the step make it cost."""
    opened = recipe("emigm", "emigm-fashion", **{
        "model.depth": 4, "model.width": 32, "model.heads": 2, "optimiser.batch_size": 4,
    })  # fmt: skip
    each = [step_operations(opened, [step]) for step in range(4)]
    assert len(set(each)) > 1
    assert step_operations(opened, range(4)) == pytest.approx(sum(each) / 4)


def test_logits_count_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training may compute those of a long batch again to save memory, which counts as no operation of the step."""
    small = {"model.depth": 2, "model.width": 32, "model.heads": 2, "optimiser.batch_size": 4}
    opened = recipe("emigm", "emigm-fashion", **small)
    whole = step_operations(opened)
    monkeypatch.setattr("mind.baselines.categorical_head._CHUNK", 100)
    assert step_operations(opened) == whole


def test_seconds_grow_with_the_batch() -> None:
    shape = {"model.depth": 2, "model.width": 64, "model.heads": 2}
    one, many = (recipe("sit", "sit-fashion", **shape, **{"optimiser.batch_size": n}) for n in (1, 64))
    assert 0 < step_seconds(one, 3) < step_seconds(many, 3)
