"""The state of a run: what goes into a checkpoint comes back where the optimiser expects it."""

import torch
from torch import nn

from mind.state import restore, snapshot


def test_step_counters_come_back_to_the_cpu() -> None:
    """AdamW that is not fused keeps them there, also where the weights are elsewhere; "meta" stands for a GPU."""
    model = nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    state = snapshot(model, {name: p.detach().clone() for name, p in model.named_parameters()}, optimiser)
    moved = nn.Linear(4, 4, device="meta")
    again = torch.optim.AdamW(moved.parameters())
    restore(state, moved, {name: p.detach().clone() for name, p in moved.named_parameters()}, again)
    for moments in again.state.values():
        assert (moments["step"].device.type, float(moments["step"])) == ("cpu", 1.0)
        assert moments["exp_avg"].device.type == "meta"
