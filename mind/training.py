"""Train a generator: one loop over cached latents, exact resume after a kill, the same numbers for any number of ranks.

Dropout, which some masked generators have, is the exception: its numbers are drawn for each rank's part of a step anew.

A run folder holds ``config.yaml`` (resolved), ``data.json``, ``metrics.jsonl``, ``checkpoints/``, ``samples/`` and, when
finished, of MIND ``mind.safetensors`` (raw weights, which the paper evaluates) and ``mind_ema.safetensors`` (averaged ones).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from latentlab.checkpoints import load_checkpoint, save_checkpoint
from latentlab.errors import UserError
from latentlab.locks import alone
from latentlab.optimisation import learning_rate, update_average
from latentlab.parallel import Workers, own_shard
from latentlab.randomness import batch_indices
from latentlab.ranks import Ranks, joined_ranks
from latentlab.run_folder import Interrupted, RunFolder, stop_signal
from latentlab.runtime import choose_device, make_writable, peak_memory, progress, quick_bfloat16, say
from mind.preview import GRID, Preview, due, grid_file
from mind.recipe import Batch, Recipe
from mind.recompute import default_recompute
from mind.run_config import RunConfig
from mind.state import raw_weights, restore, snapshot, whole_weights
from mind.tracking import Trackers


@dataclass
class Line:
    """Loss terms of the steps since the last line of the metrics; checkpoints keep them, so that a restart loses none.

    Attributes:
        steps: how many.
        sums: of each term over these steps.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, terms: Mapping[str, float]) -> None:
        """Count the terms of one step."""
        self.steps += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return the mean of each term."""
        return {name: value / self.steps for name, value in self.sums.items()}


@dataclass
class Trainer:
    """One run on one rank: the recipe, the network and where things are written.

    Attributes:
        config: of the run.
        open_recipe: opens data and tokenizer, on every rank at once.
        out: the run folder.
        device: where the network is.
        ranks: this process among those of the run.
        step: optimiser steps done.
        line: loss terms of the steps since the last line of the metrics.
    """

    config: RunConfig
    open_recipe: Callable[[], Recipe]
    out: Path
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0
    line: Line = field(default_factory=Line)

    def __post_init__(self) -> None:
        """Build everything and load the newest checkpoint.

        Raises:
            UserError: data, folder or batch size that do not fit, or what is learned has changed since the run began.
        """
        config = self.config
        self.ranks.wait()  # for rank 0 to have the folder for itself: others must not read what another job still writes
        self._trained = False
        self._check_batch()
        torch.set_flush_denormal(True)
        self.folder = RunFolder(self.out)
        self.recipe = self.open_recipe()
        self.model = self._new_model()
        objective = self.recipe.objective(self.model)
        self.workers = Workers(objective, list(self.model.blocks), config.parallel, self.ranks, self.device)
        self.average = {name: weight.clone() for name, weight in raw_weights(self.model).items()}
        optim = config.optimiser
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=optim.peak, betas=optim.betas, eps=optim.epsilon, weight_decay=optim.weight_decay,
            fused=None if config.parallel == "fsdp" else self.device.type in ("cpu", "cuda"),
        )  # fmt: skip
        if self.ranks.first:  # only now: an attempt that is refused leaves the folder free
            self.folder.prepare(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            self.folder.note_data(self.recipe.fingerprints)
        self._resume()

    def run(self) -> Path:
        """Train to the last step; return the path of the exported raw weights.

        Raises:
            UserError: the loss is not finite.
            Interrupted: SIGTERM or Ctrl-C; a checkpoint was written.
        """
        config, total = self.config, self.config.optimiser.steps
        names = config.track if self.ranks.first else []
        tracked = closing(Trackers(names, self.out, config.model_dump(mode="json"), self.step))
        shown = progress(f"training {config.name}", total, self.step)
        with tracked as trackers, stop_signal() as stop, shown as advance:
            log = _Log(self, trackers)
            preview = Preview(self.recipe, self.out, self.ranks, trackers)
            if self.step:
                self._look(log, preview, self._seen())
            while self.step < total:
                _, stopping = self.train_step(bool(stop))
                advance(1)
                last = self.step == total
                if self.step % config.log_every == 0 or last:
                    log.write()
                if self.step in config.keep_steps and not last:
                    self._write_weights(kept_weights(self.out, self.step))
                if self.step % config.checkpoint_every == 0 or last or stopping:
                    self.save()
                self._look(log, preview)
                if stopping and not last:
                    raise Interrupted(f"stopped at step {self.step} of {total}; the same command continues from there")
        return self.export()

    def train_step(self, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Take one optimiser step; return the loss terms, means over all ranks, and whether a rank was asked to stop.

        Raises:
            UserError: loss or gradient is not finite. The parameters are those before the step.
        """
        optim = self.config.optimiser
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i, part in enumerate(self.batch(self.step)):
            with self.workers.accumulating(i + 1 < optim.accumulate):
                terms = self.workers.objective(*part)
                (terms["loss"] / optim.accumulate).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() / optim.accumulate
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        *means, stopping = self.workers.mean(
            torch.stack([*sums.values(), sums["loss"].new_tensor(float(stop))])
        ).tolist()
        terms_now = dict(zip(sums, means, strict=True))
        if not all(map(_finite, means)) or not torch.isfinite(norm):
            self._refuse(terms_now)
        self.optimiser.param_groups[0]["lr"] = self.rate(self.step)
        self.optimiser.step()
        self._trained = True
        self.step += 1
        self.line.add(terms_now)
        update_average(self.average.values(), self.model.parameters(), optim.ema_decay, self.step)
        return terms_now, stopping > 0

    def rate(self, step: int) -> float:
        """Return the learning rate of optimiser step ``step`` (from 0)."""
        optim = self.config.optimiser
        final = optim.peak if optim.final_learning_rate is None else optim.final_learning_rate
        return learning_rate(step, steps=optim.steps, peak=optim.peak, final=final, warmup=optim.warmup_steps)

    def batch(self, step: int) -> Iterator[Batch]:
        """Yield this rank's parts of a step; which images and which random numbers, dropout aside, no split changes."""
        optim = self.config.optimiser
        share = optim.batch_size // self.ranks.size
        places = torch.arange(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        images = batch_indices(self.recipe.n, optim.batch_size, step, self.config.seed)
        for part in places.chunk(optim.accumulate):
            yield self.recipe.batch(images[part], part, step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss terms on held-out images, of raw and averaged weights, with the same random numbers every time."""
        values: dict[str, float] = {}
        for prefix, averaged in (("validation", False), ("validation_ema", True)):
            network = self.weights(averaged)  # every rank: weights may lie in shards
            if self.ranks.first:
                values |= {f"{prefix}_{name}": value for name, value in self._held_out_loss(network).items()}
        self.ranks.wait()
        return values

    def _look(self, log: "_Log", preview: Preview, seen: frozenset[str] = frozenset()) -> None:
        """Measure and show what is due after this step, except what was ``seen`` before a restart."""
        last = self.step == self.config.optimiser.steps
        if due(self.step, self.config.validate_every, last) and "validation_loss" not in seen:
            log.values(self.validate())
        log.values(preview.take(self.step, last, self.weights, seen))

    def _seen(self) -> frozenset[str]:
        """Return what the run folder has of this step, on every rank: a kill after the checkpoint leaves less than is due."""
        names = {name for line in self.folder.metrics() if line["step"] == self.step for name in line}
        if grid_file(self.out, self.step).exists():
            names.add(GRID)
        return self.ranks.agreed(frozenset(names))

    def _held_out_loss(self, network: Any) -> dict[str, float]:
        objective = self.recipe.objective(network)
        sums: dict[str, float] = {}
        count = 0
        for size, batch in self.recipe.held_out():
            count += size
            for name, value in objective(*batch).items():
                sums[name] = sums.get(name, 0.0) + float(value) * size
        return {name: value / count for name, value in sums.items()}

    # --- building -----------------------------------------------------------------------------------------------------

    def _check_batch(self) -> None:
        optim = self.config.optimiser
        if optim.batch_size % (self.ranks.size * optim.accumulate):
            raise UserError(
                f"optimiser.batch_size {optim.batch_size} cannot be shared by {self.ranks.size} ranks in {optim.accumulate} "
                "parts: choose a multiple of their product"
            )

    def _new_model(self) -> Any:
        config = self.config
        torch.manual_seed(config.seed)
        network = self.recipe.network().to(self.device).train()
        network.set_precision(self._precision())
        compiled = self.device.type == "cuda" if config.compile is None else config.compile
        if compiled and config.recompute == "cheap":
            raise UserError(
                "recompute: cheap is for blocks that are not compiled: set compile=false, or recompute=blocks"
            )
        network.recompute = config.recompute or ("nothing" if compiled else default_recompute(network))
        for block in network.blocks if compiled else ():
            block.compile()
        return network

    def _precision(self) -> str:
        """Return how the network computes: autocast only where it is quicker than float32."""
        return self.config.precision if quick_bfloat16(self.device) else "float32"

    def weights(self, averaged: bool) -> Any:
        """Return a whole copy of the network with raw or averaged weights, in evaluation mode; every rank must call it."""
        whole = whole_weights(self.average if averaged else raw_weights(self.model))
        network = self.recipe.network().to(self.device)
        network.set_precision(self._precision())
        network.load_state_dict({**network.state_dict(), **whole})
        return network.eval().requires_grad_(False)

    # --- the run folder -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint from which training continues bit by bit.

        Raises:
            UserError: weights are not finite; the checkpoints before stay.
        """
        shards = (own_shard(weight) for weight in raw_weights(self.model).values())
        if self.workers.any(not all(bool(torch.isfinite(shard).all()) for shard in shards)):
            self._refuse({"weights": float("nan")})
        state = snapshot(self.model, self.average, self.optimiser, keep=self.ranks.first)
        if self.ranks.first:
            save_checkpoint(self.folder.checkpoints, self.step, {**state, "line": asdict(self.line)})
        self.ranks.wait()

    def _resume(self) -> None:
        if newest := self.folder.newest():
            self.step, state = load_checkpoint(newest)
            restore(state, self.model, self.average, self.optimiser)
            self.line = Line(**state.get("line", {}))  # which checkpoints of earlier versions do not have
        if self.ranks.first:
            self.folder.forget_after(self.step)
            if self._precision() != self.config.precision:
                say(
                    f"precision {self.config.precision}: this CPU has no instructions for bfloat16 and computes in float32"
                )
            if newest:
                say(f"continuing {self.out} at step {self.step}")

    def _refuse(self, terms: Mapping[str, float]) -> None:
        bad = [name for name, value in terms.items() if not _finite(value)] or ["the gradient"]
        raise UserError(
            f"not finite at step {self.step}: {', '.join(bad)}; {self.folder.last_good()}; lower optimiser.learning_rate or "
            "use precision float32"
        )

    def export(self) -> Path:
        """Write raw and averaged weights with everything that sampling needs; return the path of the raw ones.

        What a finished run wrote stays as it is: its bytes identify what was sampled from it.
        """
        exports = self._exports(self.out)
        if self._trained or not all(path.is_file() for path in exports):
            self._write_weights(self.out)
        return exports[0]

    def _exports(self, folder: Path) -> list[Path]:
        """Return the files of raw and averaged weights in a folder."""
        return [folder / f"{self.recipe.kind}{suffix}.safetensors" for suffix in ("", "_ema")]

    def _write_weights(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path, averaged in zip(self._exports(folder), (False, True), strict=True):
            network = self.weights(averaged)
            if self.ranks.first:
                header = {
                    "sampler": json.dumps(self.recipe.sampler),
                    "training": self.config.model_dump_json(),
                    "weights": "averaged" if averaged else "raw",
                    "steps": str(self.step),
                }
                self.recipe.export(path, network, header)


def kept_weights(run: Path, step: int) -> Path:
    """Return the folder, in that of a run, of the weights kept after ``step``; it opens like the run itself."""
    return run / "weights" / f"step_{step:06d}"


class _Log:
    """What is said and kept about the steps since the last line."""

    def __init__(self, trainer: Trainer, trackers: Trackers) -> None:
        self._trainer, self._trackers = trainer, trackers
        self._first, self._since = trainer.step, time.monotonic()

    def write(self) -> None:
        """Write the means since the last line, with pace, memory and what the recipe says about the weights."""
        trainer = self._trainer
        pace = (time.monotonic() - self._since) / (trainer.step - self._first)
        means, trainer.line = trainer.line.means(), Line()
        statistics = trainer.recipe.statistics(trainer.model)
        left = (trainer.config.optimiser.steps - trainer.step) * pace / 60
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        extra = {"learning_rate": trainer.rate(trainer.step - 1), "seconds_per_step": round(pace, 4)}
        self.values({**means, **statistics, **extra, "peak_memory_gib": round(peak_memory(trainer.device) / 2**30, 3)})
        if trainer.ranks.first:
            say(
                f"step {trainer.step}/{trainer.config.optimiser.steps}  {shown}  {pace:.3f} s/step  {left:.1f} min left"
            )
        self._first, self._since = trainer.step, time.monotonic()

    def values(self, values: Mapping[str, float]) -> None:
        """Write ``values`` as they are."""
        if values and self._trainer.ranks.first:
            self._trainer.folder.append(self._trainer.step, values)
            self._trackers.log(self._trainer.step, dict(values))


def train(
    config: RunConfig, recipe: Callable[[torch.device, Ranks], Recipe], out: Path, *, device: str = "auto"
) -> Path:
    """Train a generator, or continue the run in ``out``; return the path of its raw weights.

    Args:
        config: of the run.
        recipe: opens data and tokenizer on a device; all ranks do so together.
        out: the run folder.
        device: where, as in `choose_device`.

    Raises:
        UserError: bad configuration, data or folder, or a loss that is not finite.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was written.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    make_writable(out)
    with joined_ranks(chosen.type) as ranks, alone(out, ranks):
        return Trainer(config, lambda: recipe(chosen, ranks), out, chosen, ranks).run()


def _finite(value: float) -> bool:
    return value - value == 0
