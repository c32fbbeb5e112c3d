"""Train a tokenizer: one loop, exact resume after a kill, and weights that `load_tokenizer` reads.

A run folder holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``checkpoints/``, ``reconstructions/`` and, when finished,
``tokenizer.safetensors`` (the averaged weights).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from latentlab import __version__
from latentlab.checkpoints import load_checkpoint, save_checkpoint, state_to_device
from latentlab.data import ImageSet, open_data
from latentlab.errors import UserError
from latentlab.files import atomic_path
from latentlab.optimisation import learning_rate, update_average
from latentlab.pixels import to_unit_range
from latentlab.randomness import batch_indices, generator
from latentlab.run_folder import Interrupted, RunFolder, stop_signal, write_grid
from latentlab.runtime import choose_device, progress, say
from latentlab.tokenizers.autoencoder import Autoencoder, build_tokenizer
from latentlab.tokenizers.config import TrainConfig
from latentlab.tokenizers.losses import TokenizerLoss

EXPORT = "tokenizer.safetensors"


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
    folder: RunFolder = field(init=False)

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
        self.folder = RunFolder(self.out)
        self.folder.prepare(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        self._resume()

    def run(self) -> Path:
        """Train to the last step; return the path of the exported weights."""
        total = self.config.optimiser.steps
        began, begun_at = time.monotonic(), self.step
        with stop_signal() as stop, progress(f"training {self.config.name}", total, self.step) as advance:
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
        self.optimiser.param_groups[0]["lr"] = self.rate(self.step)
        self.optimiser.step()
        self.step += 1
        update_average(self.average.parameters(), self.model.parameters(), optim.ema_decay, self.step)
        return {"loss": total.detach(), **terms}

    def rate(self, step: int) -> float:
        """Return the learning rate of optimiser step ``step`` (from 0)."""
        optim = self.config.optimiser
        peak, final = optim.learning_rate, optim.final_learning_rate
        return learning_rate(step, steps=optim.steps, peak=peak, final=final, warmup=optim.warmup_steps)

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
        raise UserError(
            f"the loss is not finite at step {self.step} ({', '.join(bad)}); {self.folder.last_good()}; "
            "lower optimiser.learning_rate or use precision float32"
        )

    # --- the run folder ---------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint from which training continues bit by bit."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        return save_checkpoint(self.folder.checkpoints, self.step, state)

    def _resume(self) -> None:
        if newest := self.folder.newest():
            self.step, state = load_checkpoint(newest)
            self.model.load_state_dict(state_to_device(state["model"], self.device))
            self.average.load_state_dict(state_to_device(state["average"], self.device))
            self.optimiser.load_state_dict(state["optimiser"])
            say(f"continuing {self.out} at step {self.step}")
        self.folder.forget_after(self.step)

    def _log(self, values: Mapping[str, float], seconds_per_step: float) -> None:
        left = (self.config.optimiser.steps - self.step) * seconds_per_step
        rate = self.rate(self.step - 1)
        self.folder.append(self.step, {**values, "learning_rate": rate, "seconds_per_step": round(seconds_per_step, 4)})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(
            f"step {self.step}/{self.config.optimiser.steps}  {shown}  {seconds_per_step:.3f} s/step  {left / 60:.1f} min left"
        )

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the averaged weights on held-out images and write a grid of reconstructions."""
        from latentlab.quality.reconstruction import reconstruction_scores

        config = self.config
        held_out = open_data(
            config.data.validation, image_size=config.data.image_size, limit=config.validation_images, seed=config.seed
        )
        scores = reconstruction_scores(self.average, held_out, device=self.device)
        self.folder.append(self.step, {f"validation_{name}": estimate.value for name, estimate in scores.items()})
        say("held out  " + "  ".join(f"{name} {estimate.value:.4f}" for name, estimate in scores.items()))
        self._draw(held_out)

    def _draw(self, images: ImageSet) -> None:
        originals = to_unit_range(images.images(np.arange(min(16, images.n)))).to(self.device)
        rows = torch.cat([originals, self.average.decode(self.average.encode(originals))])
        write_grid(self.out / "reconstructions" / f"step_{self.step:08d}.png", rows, len(originals))

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
