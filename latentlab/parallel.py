"""Several ranks on one training step: copies (DDP) or shards (FSDP2) of the model, and what they must agree on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from latentlab.ranks import Ranks

Kind = Literal["ddp", "fsdp"]


class Workers:
    """The ranks of a training run and the module they share.

    Attributes:
        objective: what every rank calls; its loss has gradients of the mean over all ranks after `backward`.
    """

    def __init__(
        self, objective: nn.Module, blocks: list[nn.Module], kind: Kind, ranks: Ranks, device: torch.device
    ) -> None:
        """Wrap ``objective``; ``blocks`` are its largest parts, which FSDP2 gathers one after the other."""
        self.ranks, self._device, self._kind = ranks, device, kind
        self.objective = objective
        if ranks.size > 1:
            self.objective = self._sharded(objective, blocks) if kind == "fsdp" else self._copied(objective)

    def _copied(self, objective: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        ids = [self._device.index] if self._device.type == "cuda" else None
        return DistributedDataParallel(objective, device_ids=ids, gradient_as_bucket_view=True)

    def _sharded(self, objective: nn.Module, blocks: list[nn.Module]) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self._device.type, (self.ranks.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)  # in place
        return objective

    def accumulating(self, more: bool) -> AbstractContextManager[Any]:
        """Leave gradients unshared while ``more`` parts of the step follow."""
        if self.ranks.size == 1:
            return nullcontext()
        return self._unshared(more)

    @contextmanager
    def _unshared(self, more: bool) -> Iterator[None]:
        module: Any = self.objective
        if self._kind == "fsdp":
            module.set_requires_gradient_sync(not more)
            yield
            return
        with module.no_sync() if more else nullcontext():
            yield

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of ``values`` over all ranks, on every rank."""
        if self.ranks.size == 1:
            return values
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed / self.ranks.size

    def any(self, value: bool) -> bool:
        """Return on every rank whether ``value`` is true on one of them."""
        if self.ranks.size == 1:
            return value
        return bool(self.mean(torch.tensor(float(value), device=self._device)) > 0)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which ranks may hold shards; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(value: Tensor, pattern: Tensor) -> Tensor:
    """Return ``value`` on the device and, where there are any, in the shards of ``pattern``."""
    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements) if isinstance(pattern, DTensor) else value


def own_shard(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
