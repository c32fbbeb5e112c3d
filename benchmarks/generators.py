"""Sampling of the generators: ``python benchmarks/generators.py``.

First SiT-B/2, a batch of 8 and Euler steps, ours against the reference style: the network as it is usually published (attention
as two products around a softmax that exists in full) in a plain loop, eager, float32, the same weights and noise; then ours
compiled and in bfloat16. Then seconds per image, one at a time, of MIND-B, SiT-B/2, DiT-B/2 and eMIGM-B, guided, beside those
published for an RTX 3090 (MIND, arXiv 2606.00094, table 7).

A step costs the same whether there are 25 or 250 of them, so on a CPU fewer are timed and scaled; the printed line says how many.
Weights are fresh, with noise where they start at zero: times do not depend on them.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import print_setting
from mind_common import device_name, medians, synchronise
from torch import Tensor
from torch.nn import functional

from latentlab.runtime import choose_device, quick_bfloat16
from mind.baselines.ddpm_sampler import DdpmSamplerSettings, sample_ddpm
from mind.baselines.flow_sampler import FlowSamplerSettings, sample_flow
from mind.baselines.masked_config import sized as masked_size
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_sampler import sample_masked
from mind.baselines.masked_settings import MaskedSamplerSettings
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import sized as transformer_size
from mind.baselines.transformer_layers import patchify, unpatchify
from mind.config import sized as mind_size
from mind.network import Mind
from mind.sampler import sample as sample_mind
from mind.settings import SamplerSettings

PUBLISHED = {"MIND-B": (250, 3.25), "SiT-B/2": (250, 0.54), "DiT-B/2": (250, 2.10), "eMIGM-B": (128, 10.49)}
"""Steps and seconds of sampling one image on an RTX 3090; which of them are guided is published for MIND only."""

Sampler = Callable[[int], Any]


def with_noise(model: torch.nn.Module) -> Any:
    """Return the model with small numbers where training would have put some: zeros would hide mistakes."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


# --- SiT-B/2 against the reference style --------------------------------------------------------------------------------


def plain_velocity(model: LatentTransformer, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return the velocity [b,c,h,w] as published code computes it."""
    config = model.config
    half = torch.arange(128, device=x.device) / 128
    angles = t[:, None] * torch.exp(-half * torch.log(torch.tensor(10000.0)))
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
    cond = model.time.mlp(waves) + model.classes(labels)
    hidden = model.patch(patchify(x, config.patch)) + model.positions
    for block in model.blocks:
        hidden = plain_block(block, hidden, cond, config.heads)
    shift, scale = model.head.modulation(functional.silu(cond)).chunk(2, dim=-1)
    patches = model.head.linear(plain_modulated(hidden, shift, scale))
    return unpatchify(patches, config.patch, config.sides)


def plain_block(block: Any, x: Tensor, cond: Tensor, heads: int) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(functional.silu(cond)).chunk(6, dim=-1)
    b, tokens, h = x.shape
    qkv = block.attention.qkv(plain_modulated(x, shift1, scale1)).reshape(b, tokens, 3, heads, h // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q * (h // heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    x = x + gate1[:, None] * block.attention.out((weights @ v).transpose(1, 2).reshape(b, tokens, h))
    return x + gate2[:, None] * block.mlp(plain_modulated(x, shift2, scale2))


def plain_modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def plain_euler(model: LatentTransformer, noise: Tensor, labels: Tensor, steps: int, stop: int) -> Tensor:
    """Return the state after ``stop`` of ``steps`` Euler steps."""
    x = noise
    with torch.no_grad():
        for i in range(stop):
            x = x + plain_velocity(model, x, torch.full((len(x),), i / steps, device=x.device), labels) / steps
    return x


def ours_euler(model: LatentTransformer, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    settings = FlowSamplerSettings(steps=steps, cfg_scale=1.0)
    return sample_flow(model, labels, settings, noise=noise).latents


def against_reference(device: torch.device, size: str, batch: int, steps: int, repeats: int) -> None:
    """Print how ours compares with the reference style, then what bfloat16 and compilation give."""
    torch.manual_seed(0)
    model = with_noise(LatentTransformer(transformer_size(size))).to(device)
    noise = torch.randn(batch, *model.config.latent_shape, device=device)
    labels = torch.arange(batch, device=device) % model.config.num_classes
    ours, plain = ours_euler(model, noise, labels, steps), plain_euler(model, noise, labels, steps, steps)
    difference = float((ours - plain).abs().max() / plain.abs().max())
    runs: dict[str, Callable[[], object]] = {
        "ours": partial(ours_euler, model, noise, labels, steps),
        "reference": partial(plain_euler, model, noise, labels, steps, steps),
    }
    seconds = medians(runs, repeats, device, warm_up=0)
    print(
        f"{size}/2, {steps} Euler steps, batch {batch}, float32, {device_name(device)}: ours {seconds['ours']:.2f} s, "
        f"reference style {seconds['reference']:.2f} s, ratio {seconds['reference'] / seconds['ours']:.2f}x, outputs differ by "
        f"{difference:.1e} of the largest (medians of {repeats})",
        flush=True,
    )
    for name, prepare in (("compiled", compiled), ("bfloat16", rounded), ("bfloat16, compiled", both)):
        if name.startswith("bfloat16") and not quick_bfloat16(device):
            print(f"  {name}: this CPU has no instructions for bfloat16")
            continue
        changed = prepare(with_noise(LatentTransformer(transformer_size(size))).to(device))
        changed.load_state_dict(model.state_dict())
        faster = medians({"run": partial(ours_euler, changed, noise, labels, steps)}, repeats, device)["run"]
        print(f"  {name}: {faster:.2f} s, {seconds['ours'] / faster:.2f}x as fast as ours eager in float32", flush=True)


def compiled(model: LatentTransformer) -> LatentTransformer:
    for block in model.blocks:
        block.compile()
    return model


def rounded(model: LatentTransformer) -> LatentTransformer:
    return model.set_precision("bfloat16")


def both(model: LatentTransformer) -> LatentTransformer:
    return compiled(rounded(model))


# --- seconds per image --------------------------------------------------------------------------------------------------


def samplers(device: torch.device, letter: str) -> dict[str, Sampler]:
    """Return, by the name of the published row, a function of the number of steps that samples one image, guided."""
    label = torch.zeros(1, dtype=torch.long)
    sit = with_noise(LatentTransformer(transformer_size(f"sit-{letter}"))).to(device)
    dit = with_noise(LatentTransformer(transformer_size(f"dit-{letter}"))).to(device)
    masked = with_noise(MaskedTransformer(masked_size(f"emigm-{letter}"))).to(device)
    mind = with_noise(Mind(mind_size(f"mind-{letter}"))).to(device)
    return {
        "MIND-B": lambda n: sample_mind(mind, label, SamplerSettings(steps=n)),
        "SiT-B/2": lambda n: sample_flow(sit, label, FlowSamplerSettings(steps=n, cfg_scale=1.5)),
        "DiT-B/2": lambda n: sample_ddpm(dit, label, DdpmSamplerSettings(steps=n, cfg_scale=1.5)),
        "DiT-B/2, unguided": lambda n: sample_ddpm(dit, label, DdpmSamplerSettings(steps=n, cfg_scale=1.0)),
        "eMIGM-B": lambda n: sample_masked(masked, label, MaskedSamplerSettings(steps=n)),
    }


def seconds_per_image(device: torch.device, letter: str, share: float) -> None:
    """Print what one image takes with each, and the ratio that was published for it."""
    found: dict[str, float] = {}
    for name, sampler in samplers(device, letter).items():
        steps, published = PUBLISHED[name.partition(",")[0]]
        timed = max(4, round(steps * share))
        sampler(4)
        synchronise(device)
        start = time.perf_counter()
        result = sampler(timed)
        synchronise(device)
        found[name] = (time.perf_counter() - start) * steps / timed
        print(
            f"  {name}: {found[name]:.2f} s for {steps} steps ({timed} timed, {result.evaluations / timed:.2f} evaluations a "
            f"step); published {published:.2f} s",
            flush=True,
        )
    for other in ("DiT-B/2", "SiT-B/2"):
        published = PUBLISHED["MIND-B"][1] / PUBLISHED[other][1]
        print(f"  MIND-B / {other}: {found['MIND-B'] / found[other]:.2f}, published {published:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="b", help="s or b")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=None, help="Euler steps; default: 50 on a GPU, 5 on a CPU")
    parser.add_argument(
        "--share", type=float, default=None, help="of the published steps; default: 1 on a GPU, 0.1 on a CPU"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    print_setting()
    against_reference(
        device, f"sit-{options.size}", options.batch, options.steps or (50 if on_gpu else 5), options.repeats
    )
    print(f"seconds per image, one at a time, {device_name(device)}, float32")
    seconds_per_image(device, options.size, options.share or (1.0 if on_gpu else 0.1))


if __name__ == "__main__":
    main()
