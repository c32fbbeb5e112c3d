"""The state of a training run as plain whole tensors, whether ranks hold copies of the model or shards of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.parallel import sharded_as, whole
from mind.geometry import TokenTable
from mind.network import Mind

Weights = dict[str, Tensor]


def raw_weights(model: nn.Module) -> Weights:
    """Return every parameter by name, in shards where the model is, without a gradient."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def whole_weights(weights: Mapping[str, Tensor]) -> Weights:
    """Return ``weights`` whole on this rank; every rank must call it."""
    return {name: whole(tensor) for name, tensor in weights.items()}


def snapshot(model: nn.Module, average: Weights, optimiser: torch.optim.Optimizer, keep: bool = True) -> dict[str, Any]:
    """Return all that training continues from, whole tensors on the CPU; every rank must call it.

    Args:
        model: what is trained.
        average: of its weights.
        optimiser: its optimiser.
        keep: False on ranks that do not write: they help to gather each tensor and hold none of them.
    """

    def gathered(tensor: Tensor) -> Tensor:
        full = whole(tensor.detach())
        return full.cpu() if keep else full.new_empty(0)

    state = optimiser.state_dict()
    return {
        "model": {name: gathered(tensor) for name, tensor in model.named_parameters()},
        "average": {name: gathered(tensor) for name, tensor in average.items()},
        "optimiser": {
            "state": {
                number: {key: gathered(value) for key, value in entries.items()}
                for number, entries in state["state"].items()
            },
            "param_groups": state["param_groups"],
        },
    }


@torch.no_grad()
def restore(state: Mapping[str, Any], model: nn.Module, average: Weights, optimiser: torch.optim.Optimizer) -> None:
    """Put back what `snapshot` returned, into shards where the model has them."""
    for name, parameter in model.named_parameters():
        parameter.copy_(sharded_as(state["model"][name], parameter))
        average[name].copy_(sharded_as(state["average"][name], parameter))
    trained = [p for p in model.parameters() if p.requires_grad]
    entries = {
        number: {
            # counters of steps stay on the CPU unless the optimiser, which knows where it wants them, moves them
            key: sharded_as(value, trained[number]) if value.ndim else value
            for key, value in moments.items()
        }
        for number, moments in state["optimiser"]["state"].items()
    }
    optimiser.load_state_dict({"state": entries, "param_groups": state["optimiser"]["param_groups"]})


def whole_table(model: Mind) -> TokenTable:
    """Return a copy of the token table, whole on this rank; every rank must call it."""
    config = model.config
    copy = TokenTable(config.vocab_size, config.embed_dim, config.subvector_size, config.normalise)
    copy.embedding = torch.nn.Parameter(whole(model.table.embedding.detach()))
    return copy
