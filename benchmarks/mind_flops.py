"""Model-FLOPs utilisation of MIND-B training in bfloat16 on one GPU: ``python benchmarks/mind_flops.py``.

Utilisation is (operations the model needs for a step) / (seconds * the device's published dense bfloat16 peak). What the model
needs is three times its forward pass, counted by torch on the plain model of `mind_common`; recomputation does not count, nor
do soft top-k, optimiser and the average of the weights. The share of what one large matrix product reaches is printed beside it.
Without a GPU it prints that share only, for a step that a CPU can take.
"""

import argparse
from functools import partial

import torch
from common import print_setting
from mind_common import device_name, medians, plain_logits
from mind_training import prepare, step
from torch.utils.flop_counter import FlopCounterMode

from latentlab.runtime import choose_device
from mind.config import sized
from mind.network import Mind

PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Dense bfloat16 operations per second of the SXM or only version, from the makers' data sheets."""


def forward_operations(size: str) -> int:
    """Return the operations (2 per multiply-add) of one forward pass over one image."""
    config = sized(size)
    with torch.device("meta"):
        model = Mind(config)
        inputs = (torch.empty(1, config.tokens, config.embed_dim), torch.empty(1), torch.empty(1, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        plain_logits(model, *inputs)
    return counter.get_total_flops()


def product_rate(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """Return the operations per second of a square matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / medians({"product": lambda: a @ b}, 10, device, warm_up=3)["product"]


def published_peak(device: torch.device) -> float | None:
    """Return the dense bfloat16 peak of the GPU, if it is in the table."""
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="mind-b")
    parser.add_argument("--batch", type=int, default=None, help="default: 128 on a GPU, 1 on a CPU")
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=None, help="default: 20 on a GPU, 3 on a CPU")
    options = parser.parse_args()
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    batch, repeats = options.batch or (128 if on_gpu else 1), options.repeats or (20 if on_gpu else 3)
    precision, dtype, side = ("autocast", torch.bfloat16, 8192) if on_gpu else ("float32", torch.float32, 1024)
    print_setting()
    prepared = prepare(str(device), options.size, batch, precision, options.chunk, recompute="nothing", ours=True)
    seconds = medians({"step": partial(step, prepared)}, repeats, device, warm_up=3)["step"]
    rate = 3 * forward_operations(options.size) * batch / seconds
    product = product_rate(device, side, dtype)
    print(f"{options.size}, batch {batch}, {precision}, {device_name(device)} (medians of {repeats})")
    print(
        f"  {seconds:.3f} s per step, {batch / seconds:.1f} images/s, {rate / 1e12:.2f} TFLOP/s, {100 * rate / product:.0f} % of "
        f"one {side} x {side} product ({product / 1e12:.2f} TFLOP/s)"
    )
    if not on_gpu:
        print("  no GPU here: no model-FLOPs utilisation, which is a share of a GPU's published bfloat16 peak")
    elif peak := published_peak(device):
        gib = torch.cuda.max_memory_allocated(device) / 2**30
        print(f"  utilisation {100 * rate / peak:.1f} % of {peak / 1e12:.0f} TFLOP/s; peak memory {gib:.1f} GiB")
    else:
        print(f"  the published peak of this GPU is not in the table: add it to {__file__}")


if __name__ == "__main__":
    main()
