"""Training on a device without float64. Torch's "meta" device stands in for it: a tensor there is refused as MPS refuses it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mind.baselines.ddpm_objective import DdpmObjective, drawn_steps
from mind.baselines.flow import FlowObjective, drawn_times, flow_loss
from mind.baselines.masked_config import MaskedConfig
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_objective import MaskedObjective, draw_noise
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig
from mind.config import MindConfig
from mind.float64 import as_float64
from mind.geometry import TokenTable
from mind.learned_geometry import learned_geometry
from mind.network import Mind
from mind.objective import MindObjective, SoftTopK

DEVICE, BATCH = torch.device("meta"), 3
CPU_NUMBER = 0.5
"""What every number is once it is on the CPU: those of "meta" tensors do not exist."""


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 on the device; lets numbers be read from it, which "meta" does not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device == DEVICE:
            return 1
        if func is torch.ops.aten._to_copy.default and args[0].device == DEVICE and str(kwargs.get("device")) == "cpu":
            return torch.full(args[0].shape, CPU_NUMBER, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device == DEVICE and tensor.dtype == torch.float64:
                raise TypeError(f"no float64 on this device: {func}")
        return out


def mind_loss(process: Any) -> Tensor:
    config = MindConfig(
        vocab_size=16, embed_dim=8, subvector_size=2, hidden_size=16, num_heads=2, num_blocks=1, cond_dim=8, tokens=4,
        num_classes=3, mapper_width=16, noise_process=process,
    )  # fmt: skip
    target = MindObjective(Mind(config).to(DEVICE), SoftTopK(k=4, size=2))
    ids = torch.zeros(BATCH, 4, dtype=torch.int64, device=DEVICE)
    return target(ids, ids[:, 0], torch.rand(BATCH, device=DEVICE), torch.randn(BATCH, 4, 8, device=DEVICE))["loss"]


def transformer_loss(kind: Any) -> Tensor:
    config = TransformerConfig(kind=kind, depth=1, width=16, heads=2, num_classes=3, input=(4, 4), in_channels=2)
    network = LatentTransformer(config).to(DEVICE)
    uniform, data = torch.rand(BATCH, device=DEVICE), torch.randn(BATCH, 2, 4, 4, device=DEVICE)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
    if kind == "dit":
        return DdpmObjective(network)(data, labels, drawn_steps(uniform), data)["loss"]
    loss = flow_loss(kind)
    return FlowObjective(network, loss)(data, labels, drawn_times(uniform, loss), data)["loss"]


def masked_loss(**fields: Any) -> Tensor:
    config = MaskedConfig(tokens=4, num_classes=3, width=16, depth=2, heads=2, class_tokens=1, **fields)
    network = MaskedTransformer(config).to(DEVICE)
    places = torch.arange(BATCH, device=DEVICE)
    data = torch.zeros(BATCH, 4, dtype=torch.int64, device=DEVICE)
    if config.vocab_size is None:
        data = torch.randn(BATCH, 4, config.in_channels, device=DEVICE)
    return MaskedObjective(network)(data, places % 3, draw_noise(config, 0, "train", places, 0))["loss"]


CODES = {"vocab_size": 8}
LATENTS = {"in_channels": 2, "head_depth": 1, "head_width": 8, "head_copies": 2}
LOSSES: dict[str, Callable[[], Tensor]] = {
    "mind": lambda: mind_loss("sqrt_t"),
    "mind, ddpm": lambda: mind_loss("ddpm_linear"),
    "sit": lambda: transformer_loss("sit"),
    "lightningdit": lambda: transformer_loss("lightningdit"),
    "dit": lambda: transformer_loss("dit"),
    "emigm of codes": lambda: masked_loss(**CODES),
    "emigm of latents": lambda: masked_loss(**LATENTS),
    "exact masks": lambda: masked_loss(**CODES, masking="exact"),
    "weighted": lambda: masked_loss(**CODES, weighting="mdm"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_step_needs_no_float64_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which "meta" does not have
    with WithoutFloat64():
        loss = LOSSES[name]()
        loss.backward()
    assert loss.device == DEVICE and loss.dtype == torch.float32


def test_a_token_table_is_measured_on_the_cpu() -> None:
    table = TokenTable(8, 4, 2).to(DEVICE)
    with WithoutFloat64():
        assert learned_geometry(table).codes == 8


def test_numbers_stay_where_float64_is() -> None:
    values = torch.tensor([0.1, 0.7])
    assert as_float64(values).tolist() == [float(value) for value in values]
    with WithoutFloat64():
        moved = as_float64(torch.empty(2, device=DEVICE))
    assert (moved.device.type, moved.dtype) == ("cpu", torch.float64)
