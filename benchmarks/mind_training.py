"""One training step of MIND-S, batch 8, against a plain eager implementation: ``python benchmarks/mind_training.py``.

The step is forward, backward, gradient clipping, AdamW and the average of the weights, as in `mind.training`. The plain model of
`mind_common` has the logits of all tokens at once, a softmax over them and attention weights that exist in full. Memory of
the step is what it takes beside weights and optimiser state; both contestants hold the same state.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from common import peak_memory, print_setting
from mind_common import device_name, medians, plain_loss
from torch import Tensor

from latentlab.optimisation import update_average
from latentlab.runtime import choose_device
from mind.config import sized
from mind.network import Mind
from mind.objective import MindObjective, SoftTopK
from mind.recompute import Recompute


@dataclass
class Setup:
    """A model, a batch and an optimiser that has taken a step."""

    model: Mind
    batch: tuple[Tensor, Tensor, Tensor, Tensor]
    soft: SoftTopK
    optimiser: torch.optim.AdamW
    average: list[Tensor]


def prepare(
    device: str, size: str, n: int, precision: str, chunk: int, recompute: Recompute, ours: bool
) -> tuple[Setup, Callable[[Setup], Tensor]]:
    """Return a setup and the loss to step with, after one step: lazily loaded libraries and optimiser state are there."""
    torch.manual_seed(0)
    config = sized(size)
    model = Mind(config).to(device).set_precision(precision)
    model.recompute = recompute
    if ours and device.startswith("cuda"):  # as the trainer does
        for block in model.blocks:
            block.compile()
    with torch.no_grad():  # gates off their zero start, so that every gradient matters
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = (
        torch.randint(config.vocab_size, (n, config.tokens)), torch.randint(config.num_classes + 1, (n,)),
        torch.rand(n), torch.randn(n, config.tokens, config.embed_dim),
    )  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=ours or None)
    setup = Setup(
        model, tuple(part.to(device) for part in batch), SoftTopK(size=config.subvector_size), optimiser,
        [p.detach().clone() for p in model.parameters()],
    )  # fmt: skip
    loss = partial(our_loss, chunk=chunk) if ours else peer_loss
    step((setup, loss))
    return setup, loss


def our_loss(setup: Setup, chunk: int) -> Tensor:
    return MindObjective(setup.model, setup.soft, chunk)(*setup.batch)["loss"]


def peer_loss(setup: Setup) -> Tensor:
    device = setup.batch[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=setup.model.precision == "autocast"):
        return plain_loss(setup.model, setup.soft, *setup.batch)


def step(prepared: tuple[Setup, Callable[[Setup], Tensor]]) -> None:
    """Take one training step."""
    setup, loss = prepared
    loss(setup).backward()
    torch.nn.utils.clip_grad_norm_(setup.model.parameters(), 1.0)
    setup.optimiser.step()
    setup.optimiser.zero_grad(set_to_none=True)
    update_average(setup.average, setup.model.parameters(), 0.9999, 1)


def memory(device: torch.device, *arguments: object) -> float:
    """Return the MiB that a step takes beside weights and optimiser state."""
    if device.type != "cuda":
        return peak_memory(prepare, step, str(device), *arguments)
    prepared = prepare(str(device), *arguments)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(prepared)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def gradient_difference(
    ours: tuple[Setup, Callable[[Setup], Tensor]], peer: tuple[Setup, Callable[[Setup], Tensor]]
) -> float:
    """Return the largest difference of a gradient, relative to the largest entry of its tensor."""
    found = []
    for setup, loss in (ours, peer):
        trained = [p for p in setup.model.parameters() if p.requires_grad]
        found.append(torch.autograd.grad(loss(setup), trained))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="mind-s", choices=["mind-s", "mind-b", "mind-xl"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="float32", choices=["float32", "autocast"])
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = choose_device(options.device)
    print_setting()
    print(f"{options.size}, batch {options.batch}, {options.precision}, {device_name(device)}")
    arguments = (options.size, options.batch, options.precision, options.chunk)
    peer = prepare(str(device), *arguments, "nothing", False)
    peer_memory = memory(device, *arguments, "nothing", False)
    state = 3 * sum(p.numel() * p.element_size() for p in peer[0].model.parameters()) / 2**20
    for recompute in get_args(Recompute):
        ours = prepare(str(device), *arguments, recompute, True)
        difference = gradient_difference(ours, prepare(str(device), *arguments, "nothing", False))
        runs = {"ours": partial(step, ours), "peer": partial(step, peer)}
        seconds, peer_seconds = medians(runs, options.repeats, device).values()
        used = memory(device, *arguments, recompute, True)
        whole = (used + state) / (peer_memory + state)
        print(
            f"ours, recompute {recompute}: {seconds:.3f} s against {peer_seconds:.3f} s, ratio {peer_seconds / seconds:.2f}x; "
            f"memory of the step {used:.0f} MiB against {peer_memory:.0f}, ratio {used / peer_memory:.2f} (with weights, moments "
            f"and average {whole:.2f}); gradients differ by {difference:.1e} (medians of {options.repeats})",
            flush=True,
        )


if __name__ == "__main__":
    main()
