"""Train a tokenizer: one loop, exact resume after a kill, and weights that `load_tokenizer` reads.

A run folder holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``checkpoints/``, ``reconstructions/`` and, when finished,
``tokenizer.safetensors`` (the averaged weights).
"""

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import make_grid

from latentlab import __version__
from latentlab.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint, state_to_device
from latentlab.data import ImageSet, open_data
from latentlab.errors import UserError
from latentlab.files import atomic_path, write_text
from latentlab.pixels import to_unit_range
from latentlab.randomness import batch_indices, generator
from latentlab.runtime import choose_device, progress, say
from latentlab.tokenizers.autoencoder import Autoencoder, build_tokenizer
from latentlab.tokenizers.config import OptimiserConfig, TrainConfig
from latentlab.tokenizers.losses import TokenizerLoss

EXPORT = "tokenizer.safetensors"


class Interrupted(Exception):
    """Training was asked to stop (SIGTERM or Ctrl-C) and has saved a checkpoint."""


def learning_rate(config: OptimiserConfig, step: int) -> float:
    """Return the learning rate of optimiser step ``step`` (from 0): linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


@dataclass
class Trainer:
    """One run: the networks, the data and where things are written."""

    config: TrainConfig
    out: Path
    device: torch.device
    step: int = 0
    images: ImageSet = field(init=False)
    model: Autoencoder = field(init=False)
    average: Autoencoder = field(init=False)
    objective: TokenizerLoss = field(init=False)
    optimiser: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        """Build everything and load the newest checkpoint."""
        config = self.config
        torch.set_flush_denormal(True)  # the entropy term's tiny probabilities make a step a tenth slower otherwise
        self.images = open_data(config.data.train, image_size=config.data.image_size, limit=config.data.limit)
        self.model, self.average = self._new_model().train(), self._new_model().eval()
        self.average.load_state_dict(self.model.state_dict())
        self.objective = TokenizerLoss(config.loss).to(self.device)
        fused = self.device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(self.model.parameters(), betas=config.optimiser.betas, fused=fused)
        self._prepare_folder()
        self._resume()

    def run(self) -> Path:
        """Train to the last step; return the path of the exported weights."""
        total = self.config.optimiser.steps
        began, begun_at = time.monotonic(), self.step
        with _stop_signal() as stop, progress(f"training {self.config.name}", total, self.step) as advance:
            while self.step < total:
                terms = self.train_step()
                advance(1)
                if self.step % self.config.log_every == 0 or self.step == total:
                    pace = (time.monotonic() - began) / (self.step - begun_at)
                    self._log({name: float(value) for name, value in terms.items()}, pace)
                if self.step % self.config.checkpoint_every == 0 or self.step == total or stop:
                    self.save()
                if self.step % self.config.validate_every == 0 or self.step == total:
                    self._validate()
                if stop and self.step < total:
                    raise Interrupted(f"stopped at step {self.step} of {total}; the same command continues from there")
        return self.export()

    def train_step(self) -> dict[str, Tensor]:
        """Take one optimiser step; return the loss terms.

        Raises:
            UserError: the loss is not finite. The parameters are those before the step.
        """
        optim = self.config.optimiser
        images = self._batch(self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            output = self.model.forward_train(images, generator(self.config.seed, "noise", self.step))
        total, terms = self.objective(images, output)
        if not torch.isfinite(total):
            self._refuse(terms)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        self.optimiser.param_groups[0]["lr"] = learning_rate(optim, self.step)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return {"loss": total.detach(), **terms}

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the averaged weights; the decay grows with the step so that the start is forgotten."""
        decay = min(self.config.optimiser.ema_decay, (1 + self.step) / (10 + self.step))
        for mine, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)

    def _batch(self, step: int) -> Tensor:
        """Return the images of one step, [b,3,H,W] in [-1,1], some mirrored."""
        config = self.config
        chosen = batch_indices(self.images.n, config.optimiser.batch_size, step, config.seed)
        images = to_unit_range(self.images.images(chosen.numpy()))
        if config.data.flip:
            mirrored = torch.rand(len(images), generator=generator(config.seed, "flip", step)) < 0.5
            images[mirrored] = images[mirrored].flip(3)
        return images.to(self.device)

    def _new_model(self) -> Autoencoder:
        torch.manual_seed(self.config.seed)
        config = self.config
        return build_tokenizer(config.architecture, name=config.name, release=config.release).to(self.device)

    def _refuse(self, terms: Mapping[str, Tensor]) -> None:
        bad = [name for name, value in terms.items() if not torch.isfinite(value)] or ["their sum"]
        kept = list_checkpoints(self.out / "checkpoints")
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise UserError(
            f"the loss is not finite at step {self.step} ({', '.join(bad)}); {last}; lower optimiser.learning_rate or "
            "use precision float32"
        )

    # --- the run folder ---------------------------------------------------------------------------------------------

    def _prepare_folder(self) -> None:
        """Write the resolved configuration, or check that the folder belongs to the same one."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        file = self.out / "config.yaml"
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise UserError(f"{self.out} holds a run with another configuration: choose another --out, or delete it")
        write_text(file, text)

    def save(self) -> Path:
        """Write a checkpoint from which training continues bit by bit."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        return save_checkpoint(self.out / "checkpoints", self.step, state)

    def _resume(self) -> None:
        kept = list_checkpoints(self.out / "checkpoints")
        if not kept:
            return
        self.step, state = load_checkpoint(kept[-1])
        self.model.load_state_dict(state_to_device(state["model"], self.device))
        self.average.load_state_dict(state_to_device(state["average"], self.device))
        self.optimiser.load_state_dict(state["optimiser"])
        self._forget_later_metrics()
        say(f"continuing {self.out} at step {self.step}")

    def _forget_later_metrics(self) -> None:
        """Drop lines of steps that will be taken again, and a line cut off by a kill."""
        file = self.out / "metrics.jsonl"
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= self.step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        write_text(file, "".join(line + "\n" for line in kept))

    def _log(self, values: Mapping[str, float], seconds_per_step: float) -> None:
        left = (self.config.optimiser.steps - self.step) * seconds_per_step
        rate = learning_rate(self.config.optimiser, self.step - 1)
        self._append({**values, "learning_rate": rate, "seconds_per_step": round(seconds_per_step, 4)})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(
            f"step {self.step}/{self.config.optimiser.steps}  {shown}  {seconds_per_step:.3f} s/step  {left / 60:.1f} min left"
        )

    def _append(self, values: Mapping[str, Any]) -> None:
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the averaged weights on held-out images and write a grid of reconstructions."""
        from latentlab.quality.reconstruction import reconstruction_scores

        config = self.config
        held_out = open_data(
            config.data.validation, image_size=config.data.image_size, limit=config.validation_images, seed=config.seed
        )
        scores = reconstruction_scores(self.average, held_out, device=self.device)
        self._append({f"validation_{name}": estimate.value for name, estimate in scores.items()})
        say("held out  " + "  ".join(f"{name} {estimate.value:.4f}" for name, estimate in scores.items()))
        self._draw(held_out)

    def _draw(self, images: ImageSet) -> None:
        originals = to_unit_range(images.images(np.arange(min(16, images.n)))).to(self.device)
        rows = torch.cat([originals, self.average.decode(self.average.encode(originals))])
        grid = make_grid(rows, nrow=len(originals), value_range=(-1, 1), normalize=True)
        with atomic_path(self.out / "reconstructions" / f"step_{self.step:08d}.png") as temporary:
            Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).cpu().numpy()).save(temporary, format="png")

    def export(self) -> Path:
        """Write the averaged weights with everything `load_tokenizer` needs; return the path."""
        config, path = self.config, self.out / EXPORT
        dtype = getattr(torch, config.export_dtype)
        weights = {name: value.to("cpu", dtype).contiguous() for name, value in self.average.state_dict().items()}
        metadata = {
            "architecture": json.dumps(config.architecture),
            "name": config.name,
            "release": config.release,
            "training": config.model_dump_json(),
            "latentlab_version": __version__,
        }
        with atomic_path(path) as temporary:
            save_file(weights, temporary, metadata=metadata)
        return path


def train(config: TrainConfig, out: Path, *, device: str = "auto") -> Path:
    """Train a tokenizer, or continue the run in ``out``; return the path of its weights.

    Raises:
        UserError: bad configuration, data or folder, or a loss that is not finite.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was written.
    """
    return Trainer(config, out, choose_device(device)).run()


class _Stop:
    """Becomes true when the process is asked to stop."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Turn the first SIGTERM or SIGINT into a flag, so that the step in progress is finished and saved."""
    stop = _Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
