"""250 steps of sampling with guidance in [0.2, 0.6] against guidance at every step: ``python benchmarks/mind_sampling.py``.

Then, for each size, the share of an unguided step that choosing tokens takes (temperature, top-k, top-p, drawing, lookup): an
unguided step is the shortest, so its share is the largest. Weights are fresh: times do not depend on them.
"""

import argparse
import time
from functools import partial

import torch
from common import print_setting
from mind_common import device_name, medians, synchronise

import mind.sampler
from latentlab.runtime import choose_device
from mind.config import sized
from mind.network import Mind
from mind.settings import SamplerSettings
from mind.token_choice import Choice

INTERVAL = SamplerSettings(cfg_t_min=0.2, cfg_t_max=0.6)
ALWAYS = SamplerSettings(cfg_t_min=0.0, cfg_t_max=1.0)
UNGUIDED = SamplerSettings(steps=12, cfg_scale=1.0, soft_ratio=0.0, greedy_ratio=0.0)
IMAGES = {
    "cpu": {"mind-fashion": 20, "mind-s": 2, "mind-b": 1},
    "cuda": {"mind-fashion": 256, "mind-s": 64, "mind-b": 64},
}


def fresh_model(size: str, device: torch.device, precision: str) -> Mind:
    torch.manual_seed(0)
    return Mind(sized(size)).to(device).set_precision(precision).eval()


def draw(model: Mind, n: int, settings: SamplerSettings) -> int:
    """Sample ``n`` images; return how often the network read each."""
    labels = torch.arange(n) % model.config.num_classes
    return mind.sampler.sample(model, labels, settings).evaluations


class Clock:
    """Stands in for `mind.token_choice.choose` and adds up its time."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._device, self._choose = 0.0, device, mind.sampler.choose

    def __call__(self, *arguments: object, **options: object) -> Choice:
        """Choose, and note how long it took."""
        synchronise(self._device)
        start = time.perf_counter()
        choice = self._choose(*arguments, **options)
        synchronise(self._device)
        self.seconds += time.perf_counter() - start
        return choice


def selection_share(model: Mind, n: int, device: torch.device) -> tuple[float, float]:
    """Return the seconds of an unguided sampling step and the share of them that choosing tokens takes."""
    draw(model, n, UNGUIDED)
    plain, mind.sampler.choose = mind.sampler.choose, Clock(device)
    try:
        start = time.perf_counter()
        draw(model, n, UNGUIDED)
        synchronise(device)
        seconds = time.perf_counter() - start
        return seconds / UNGUIDED.steps, mind.sampler.choose.seconds / seconds
    finally:
        mind.sampler.choose = plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--size", default=None, help="of the 250 steps; default: mind-fashion on a CPU, mind-b on a GPU"
    )
    parser.add_argument("--precision", default=None, help="default: float32 on a CPU, autocast on a GPU")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    size, precision = (
        options.size or ("mind-b" if on_gpu else "mind-fashion"),
        options.precision or ("autocast" if on_gpu else "float32"),
    )
    print_setting()
    images = IMAGES["cuda" if on_gpu else "cpu"]
    model = fresh_model(size, device, precision)
    runs = {name: partial(draw, model, images[size], how) for name, how in (("interval", INTERVAL), ("always", ALWAYS))}
    seconds, always = medians(runs, options.repeats, device, warm_up=0).values()
    print(
        f"{size}, {images[size]} images, 250 steps, {precision}, {device_name(device)}: guidance in [0.2, 0.6] {seconds:.2f} s, "
        f"at every step {always:.2f} s, ratio {seconds / always:.2f} (medians of {options.repeats})",
        flush=True,
    )
    for size, n in images.items():
        step, share = selection_share(fresh_model(size, device, precision), n, device)
        print(
            f"  {size}, {n} images: {1e3 * step:.1f} ms for an unguided step, {100 * share:.1f} % of it choosing tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
