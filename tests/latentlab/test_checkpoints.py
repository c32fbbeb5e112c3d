"""Training checkpoints: everything comes back as it was, old ones go, damage is named."""

from pathlib import Path

import pytest
import torch

from latentlab.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from latentlab.errors import UserError


def test_optimiser_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(layer.parameters(), betas=(0.9, 0.99))
    layer(torch.ones(4, 3)).sum().backward()
    optimiser.step()
    path = save_checkpoint(tmp_path, 7, {"model": layer.state_dict(), "optimiser": optimiser.state_dict()})
    step, state = load_checkpoint(path)
    again = torch.optim.Adam(torch.nn.Linear(3, 2).parameters())
    again.load_state_dict(state["optimiser"])
    assert step == 7
    assert torch.equal(state["model"]["weight"], layer.weight)
    for mine, theirs in zip(again.state.values(), optimiser.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(theirs[key])) for key in theirs)
    assert tuple(again.param_groups[0]["betas"]) == (0.9, 0.99)


def test_newest_is_the_highest_step_and_only_two_stay(tmp_path: Path) -> None:
    for step in (9, 10, 100, 11):
        save_checkpoint(tmp_path, step, {"x": torch.zeros(1)})
    assert [load_checkpoint(path)[0] for path in list_checkpoints(tmp_path)] == [11, 100]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(1000)})
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_checkpoint(path)
