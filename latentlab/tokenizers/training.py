"""Train a tokenizer: one loop, exact resume after a kill, the same numbers for any number of ranks.

A run folder holds ``config.yaml`` (resolved), ``data.json``, ``metrics.jsonl``, ``checkpoints/``, ``reconstructions/`` and, when
finished, ``tokenizer.safetensors`` (the averaged weights), which `load_tokenizer` reads.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from latentlab import __version__
from latentlab.checkpoints import load_checkpoint, save_checkpoint, state_to_device
from latentlab.configuration import shipped_configs
from latentlab.data import open_data
from latentlab.errors import UserError
from latentlab.files import atomic_path
from latentlab.locks import alone
from latentlab.optimisation import learning_rate, update_average
from latentlab.parallel import Workers
from latentlab.pixels import to_unit_range
from latentlab.randomness import batch_indices, generator
from latentlab.ranks import Ranks, joined_ranks
from latentlab.run_folder import Interrupted, RunFolder, stop_signal
from latentlab.runtime import choose_device, make_writable, progress, quick_bfloat16, say
from latentlab.tokenizers.adversary import Adversary
from latentlab.tokenizers.config import CONFIGS, TrainConfig
from latentlab.tokenizers.families import FAMILIES
from latentlab.tokenizers.losses import TokenizerLoss
from latentlab.tokenizers.trainable import TrainableTokenizer
from latentlab.tokenizers.validation import Validation

EXPORT = "tokenizer.safetensors"


@dataclass
class Trainer:
    """One run on one rank: the networks, the data and where things are written.

    Attributes:
        config: of the run.
        out: the run folder.
        device: where the networks are.
        ranks: this process among those of the run.
        step: optimiser steps done.
        model: what is trained.
        average: the averaged weights, which are validated and exported.
    """

    config: TrainConfig
    out: Path
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0

    def __post_init__(self) -> None:
        """Build everything and load the newest checkpoint.

        Raises:
            UserError: data, folder, batch size, objectives, or weights of frozen networks that do not fit or are absent; or
                training images that have changed since the run began.
        """
        config, device = self.config, self.device
        self._check_batch()
        self.folder = RunFolder(self.out)
        torch.set_flush_denormal(True)  # the entropy term's tiny probabilities make a step a tenth slower otherwise
        self.images = open_data(config.data.train, image_size=config.data.image_size, limit=config.data.limit)
        self.model, self.average = self._new_model().train(), self._new_model().eval()
        self.average.load_state_dict(self.model.state_dict())
        wanted = config.objectives.adversarial
        self.adversary = None if wanted is None else Adversary(wanted, self.ranks, device)
        discriminator = None if self.adversary is None else self.adversary.discriminator
        self.loss = TokenizerLoss(config, self.model, discriminator).to(device)
        self.loss.check_side(self.images.image_size)
        self.workers = Workers(self.loss, [], "ddp", self.ranks, device)
        self.optimiser = self._new_optimiser()
        self._validation = Validation(config, self.out, device) if self.ranks.first else None
        if self.ranks.first:  # only now: an attempt that is refused leaves the folder free
            self.folder.prepare(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            self.folder.note_data({"data.train": self.images.fingerprint})
        self._resume()

    def run(self) -> Path:
        """Train to the last step; return the path of the exported weights.

        Raises:
            UserError: a loss or a gradient is not finite.
            Interrupted: SIGTERM or Ctrl-C; a checkpoint was written.
        """
        config, total, validation = self.config, self.config.optimiser.steps, self._validation
        began, begun_at = time.monotonic(), self.step
        with stop_signal() as stop, progress(f"training {config.name}", total, self.step) as advance:
            while self.step < total:
                terms = self.train_step()
                advance(1)
                stopping, last = self.workers.any(bool(stop)), self.step == total
                if self.step % config.log_every == 0 or last:
                    self._log(terms, (time.monotonic() - began) / (self.step - begun_at))
                if self.step % config.checkpoint_every == 0 or last or stopping:
                    self.save()
                if validation is not None and (self.step % config.validate_every == 0 or last):
                    self.folder.append(self.step, validation.take(self.average, self.step))
                self.ranks.wait()
                if stopping and not last:
                    raise Interrupted(f"stopped at step {self.step} of {total}; the same command continues from there")
        return self.export()

    def train_step(self) -> dict[str, float]:
        """Take one optimiser step; return the loss terms, means over all parts and ranks.

        Raises:
            UserError: a loss or a gradient, of the tokenizer or of the discriminator, is not finite. The parameters of both are
                those before the step.
        """
        optim, step = self.config.optimiser, self.step
        self.model.before_step(step)
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        made = []
        for i, (images, first) in enumerate(self.batch(step)):
            with self.workers.accumulating(i + 1 < optim.accumulate):
                total, terms, reconstructions = self._loss_of(images, first)
                (total / optim.accumulate).backward()
            made.append((images, reconstructions))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value / optim.accumulate
        means = self.workers.mean(torch.stack([*sums.values()])).tolist()
        found = dict(zip(sums, means, strict=True))
        self._check_finite(found, {})
        norms = {"the tokenizer": nn.utils.clip_grad_norm_(self._trained(), optim.clip_norm)}
        opponent = self.adversary if self.adversary is not None and step >= self.adversary.settings.start else None
        if opponent is not None:
            loss, norms["the discriminator"] = opponent.take_gradients(made)
            found["discriminator"] = float(loss)
        self._check_finite(found, norms)
        rate = self.rate(step)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        if opponent is not None:
            opponent.step(rate)
        self.step += 1
        update_average(self.average.parameters(), self.model.parameters(), optim.ema_decay, self.step)
        return found

    def _loss_of(self, images: Tensor, first: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss of some images of the batch, from place ``first`` on, its terms, and the reconstructions."""
        place = (self.step, first, self.config.optimiser.batch_size)
        if self.adversary is None:
            return self.workers.objective(images, *place)
        with self.adversary.still():
            return self.workers.objective(images, *place)

    def rate(self, step: int) -> float:
        """Return the learning rate of optimiser step ``step`` (from 0)."""
        optim = self.config.optimiser
        peak, final = optim.learning_rate, optim.final_learning_rate
        return learning_rate(step, steps=optim.steps, peak=peak, final=final, warmup=optim.warmup_steps)

    def batch(self, step: int) -> Iterator[tuple[Tensor, int]]:
        """Yield this rank's parts of a step and their places in it: [b,3,H,W] in [-1,1], some images mirrored."""
        config, optim = self.config, self.config.optimiser
        chosen = batch_indices(self.images.n, optim.batch_size, step, config.seed)
        mirrored = torch.rand(len(chosen), generator=generator(config.seed, "flip", step)) < 0.5
        share = optim.batch_size // self.ranks.size
        places = torch.arange(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        for part in places.chunk(optim.accumulate):
            images = to_unit_range(self.images.images(chosen[part].numpy()))
            if config.data.flip:
                images[mirrored[part]] = images[mirrored[part]].flip(3)
            yield images.to(self.device), int(part[0])

    # --- building -----------------------------------------------------------------------------------------------------

    def _check_batch(self) -> None:
        optim = self.config.optimiser
        if optim.batch_size % (self.ranks.size * optim.accumulate):
            raise UserError(
                f"optimiser.batch_size {optim.batch_size} cannot be shared by {self.ranks.size} ranks in "
                f"{optim.accumulate} parts: choose a multiple of their product"
            )

    def _new_model(self) -> TrainableTokenizer:
        torch.manual_seed(self.config.seed)
        config = self.config
        built = FAMILIES[config.family].build(config.architecture, name=config.name, release=config.release)
        if config.start_from is not None and self.folder.newest() is None:  # a checkpoint has all weights
            built.start_from(_earlier_stage(config.start_from))
        return built.to(self.device)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.loss.parameters() if parameter.requires_grad]

    def _new_optimiser(self) -> torch.optim.Optimizer:
        optim = self.config.optimiser
        fused = self.device.type in ("cpu", "cuda")
        if optim.weight_decay:
            decay = optim.weight_decay
            return torch.optim.AdamW(self._trained(), betas=optim.betas, weight_decay=decay, fused=fused)
        return torch.optim.Adam(self._trained(), betas=optim.betas, fused=fused)

    # --- the run folder -----------------------------------------------------------------------------------------------

    def save(self) -> Path | None:
        """Write a checkpoint from which training continues bit by bit; return its path on the first rank."""
        if not self.ranks.first:
            return None
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        if self.loss.alignment is not None:
            state["alignment"] = self.loss.alignment.state_dict()
        if self.adversary is not None:
            state["adversary"] = self.adversary.state()
        return save_checkpoint(self.folder.checkpoints, self.step, state)

    def _resume(self) -> None:
        newest = self.folder.newest()
        if newest:
            self.step, state = load_checkpoint(newest)
            self.model.load_state_dict(state_to_device(state["model"], self.device))
            self.average.load_state_dict(state_to_device(state["average"], self.device))
            self.optimiser.load_state_dict(state["optimiser"])
            if self.loss.alignment is not None:
                self.loss.alignment.load_state_dict(state_to_device(state["alignment"], self.device))
            if self.adversary is not None:
                self.adversary.restore(state_to_device(state["adversary"], self.device))
        if self.ranks.first:
            self.folder.forget_after(self.step)
            if self.config.precision == "bfloat16" and not quick_bfloat16(self.device):
                say("precision bfloat16: this CPU has no instructions for it and computes in float32")
            if newest:
                say(f"continuing {self.out} at step {self.step}")

    def _check_finite(self, terms: Mapping[str, float], norms: Mapping[str, Tensor]) -> None:
        """Refuse a step whose terms or norms of gradients, by whose they are, are not finite.

        Both are the same on every rank (terms are means, gradients were summed), so all ranks decide alike.
        """
        bad = [name for name, value in terms.items() if not _finite(value)]
        told = [name for name in bad if name != "loss"] or (["their sum"] if bad else [])
        what = f"the loss is not finite at step {self.step} ({', '.join(told)})"
        if not bad:
            lost = [whose for whose, norm in norms.items() if not _finite(float(norm))]
            if not lost:
                return
            what = f"the gradient of {' and '.join(lost)} is not finite at step {self.step}"
        raise UserError(f"{what}; {self.folder.last_good()}; lower optimiser.learning_rate or use precision float32")

    def _log(self, values: Mapping[str, float], seconds_per_step: float) -> None:
        if not self.ranks.first:
            return
        left = (self.config.optimiser.steps - self.step) * seconds_per_step
        rate = self.rate(self.step - 1)
        self.folder.append(self.step, {**values, "learning_rate": rate, "seconds_per_step": round(seconds_per_step, 4)})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(
            f"step {self.step}/{self.config.optimiser.steps}  {shown}  {seconds_per_step:.3f} s/step  {left / 60:.1f} min left"
        )

    def export(self) -> Path:
        """Write the averaged weights with everything `load_tokenizer` needs; return the path."""
        config, path = self.config, self.out / EXPORT
        dtype = getattr(torch, config.export_dtype)
        if self.ranks.first:
            weights = {
                name: value.to("cpu", dtype).contiguous() for name, value in self.average.released_state().items()
            }
            metadata = {
                "architecture": json.dumps(config.architecture),
                "name": config.name,
                "release": config.release,
                "family": config.family,
                "training": config.model_dump_json(),
                "latentlab_version": __version__,
            }
            with atomic_path(path) as temporary:
                save_file(weights, temporary, metadata=metadata)
        self.ranks.wait()
        return path


def train(config: TrainConfig, out: Path, *, device: str = "auto") -> Path:
    """Train a tokenizer, or continue the run in ``out``; under torchrun on all its processes. Return the path of its weights.

    Raises:
        UserError: bad configuration, data or folder, or a loss or gradient that is not finite.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was written.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    make_writable(out)
    with joined_ranks(chosen.type) as ranks, alone(out, ranks):
        return Trainer(config, out, chosen, ranks).run()


def _earlier_stage(weights: Path) -> Path:
    """Return the ``weights`` that a run starts from.

    Raises:
        UserError: they do not exist; says how the stage that makes them is trained.
    """
    if weights.exists():
        return weights
    folder, command = weights.parent, "latentlab train tokenizer --config"
    how = f"`{command} {folder.name} --out {folder}`" if folder.name in shipped_configs(CONFIGS) else f"--out {folder}"
    raise UserError(f"start_from {weights} does not exist: train the earlier stage first, with {how}")


def _finite(value: float) -> bool:
    return value - value == 0
