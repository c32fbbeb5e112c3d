"""From a study file to its cells: what is trained, encoded, measured, sampled and judged, and which of it makes a row.

Everything that can be refused before hours of work is refused here (see `cell_settings`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from latentlab.encoding import weights_digest
from latentlab.errors import UserError
from latentlab.files import digest, file_sha256
from latentlab.quality.features import feature_extractor
from latentlab.study.cells.cell import Cell, Graph, Row
from latentlab.study.cells.networks import networks_of, weights_of_teacher
from latentlab.study.cells.settings import (
    Images,
    check_names,
    content_of,
    generator_training,
    images_of,
    tokenizer_training,
)
from latentlab.study.plan_file import GeneratorEntry, StudyFile, TokenizerEntry
from latentlab.tokenizers.identify import published_file
from latentlab.tokenizers.load import CONFIGURATION, embedded_file, load_tokenizer
from latentlab.tokenizers.plugin import plugin_version
from latentlab.tokenizers.releases import ZOO
from latentlab.tokenizers.taesd import weight_files
from latentlab.tokenizers.zoo import find_release, plugins, releases_of

SEED = 0
"""Of everything random that has no seed in the study file: measurements, bootstraps, order of paths."""


def build_graph(study: StudyFile) -> Graph:
    """Return the cells and rows of a study.

    Raises:
        UserError: something in it that cannot be done; says what and where.
    """
    check_names(study)
    content_of.cache_clear()
    weights_of_teacher.cache_clear()
    builder = _Builder(study)
    floors = builder.floors()
    for number, entry in enumerate(study.tokenizers):
        for seed in entry.seeds:
            builder.add(number, entry, seed)
    facts = {"title": study.title, "floors": {judge: cell.key for judge, cell in floors.items()}}
    return Graph(tuple(builder.cells.values()), tuple(builder.rows), builder.owners, facts)


@dataclass
class _Builder:
    """Collects the cells, each key once, and the rows."""

    study: StudyFile
    cells: dict[str, Cell] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    owners: dict[str, int] = field(default_factory=dict)
    owner: int = 0

    def __post_init__(self) -> None:
        study = self.study
        self.versions = {judge.extractor: feature_extractor(judge.extractor).version for judge in study.judges}
        self.networks = {name: networks_of(name, parameters) for name, parameters in study.measure.items()}
        self.images = images_of(study.images, study.limit)
        self.held_out = images_of(study.held_out_images, study.held_out_limit)

    def add(self, number: int, entry: TokenizerEntry, seed: int) -> None:
        """Add everything about one tokenizer of one seed."""
        self.owner = number
        subject = self._subject(entry, seed)
        latents = {"encode": subject.latents, "held_out": subject.held_out}
        shared = {"tokenizer": subject.tokenizer, **latents, **self._of_tokenizer(subject)}
        for generator in self.study.generators:
            if entry.generators is not None and generator.label not in entry.generators:
                continue
            for generator_seed in generator.seeds:
                if entry.generator_seeds is None or generator_seed in entry.generator_seeds:
                    self._add_rows(subject, entry, seed, generator, generator_seed, shared)

    def cell(self, stage: str, title: str, settings: Any, needs: Mapping[str, Cell], **places: str) -> Cell:
        """Return a cell: the one with its key that is there already, or a new one."""
        made = Cell(stage, title, settings, needs, places)
        known = self.cells.setdefault(made.key, made)
        self.owners.setdefault(known.key, self.owner)
        return known

    # --- tokenizers ---------------------------------------------------------------------------------------------------

    def _subject(self, entry: TokenizerEntry, seed: int) -> "_Subject":
        """Return a tokenizer and its latents."""
        who = entry.label if entry.seeds == (0,) else f"{entry.label} (seed {seed})"
        if entry.of is not None:
            other = self._subject(self.study.tokenizer(entry.of), seed)
            settings = {"control": entry.control, "seed": SEED}
            if (name := other.tokenizer.settings.get("name")) in plugins():
                raise UserError(f"tokenizer '{entry.label}': no control can be made of '{name}', which is a plug-in")
            needs = {"tokenizer": other.tokenizer, "latents": other.latents}
            tokenizer = self.cell("control", f"control {entry.control} of {other.who}", settings, needs)
        elif entry.train is not None:
            tokenizer = self._trained(entry, seed, who)
        else:
            tokenizer = self._at_hand(entry, who)
        encoded = self._encoded(who, tokenizer, self.images), self._encoded(who, tokenizer, self.held_out)
        return _Subject(who, tokenizer, *encoded)

    def _trained(self, entry: TokenizerEntry, seed: int, who: str) -> Cell:
        settings, places = tokenizer_training(entry, seed, self.study.tokenizer_set)
        return self.cell("train_tokenizer", f"train {who}", settings, {}, **places)

    def _at_hand(self, entry: TokenizerEntry, who: str) -> Cell:
        settings: dict[str, Any] = {"name": entry.name or entry.label, "release": entry.release, "sha256": None}
        point = plugins().get(settings["name"])
        if point is not None:
            settings["plug-in"] = plugin_version(point)
        if entry.weights is None:
            settings |= _release(settings["name"], entry.release) if point is None else _own_weights(point)
            return self.cell("tokenizer_at_hand", f"open {who}", settings, {})
        files = _weight_files(settings["name"], entry)
        beside = files[0].with_name(CONFIGURATION)  # it may have a say in the architecture
        files = (*files, beside) if beside.is_file() else files
        hashes = [file_sha256(file) for file in files]
        settings["sha256"] = hashes[0] if len(files) == 1 else digest(hashes)
        return self.cell("tokenizer_at_hand", f"open {who}", settings, {}, weights=str(files[0].resolve()))

    def _encoded(self, who: str, tokenizer: Cell, images: Images, mirrored: bool = False) -> Cell:
        title = f"encode {images.source}{' mirrored' if mirrored else ''} with {who}"
        settings = {"images": images.told, "mirrored": mirrored}
        return self.cell("encode", title, settings, {"tokenizer": tokenizer}, images=images.source)

    def _of_tokenizer(self, subject: "_Subject") -> dict[str, Cell]:
        """Return what is known of a tokenizer without any generator, by role."""
        who, tokenizer, held_out = subject.who, subject.tokenizer, subject.held_out
        needs = {"tokenizer": tokenizer, "latents": held_out}
        images = {"images": self.held_out.source}
        told = {"images": self.held_out.told, "seed": SEED}
        found = {}
        for name, parameters in self.study.measure.items():
            asked = {**told, "measurement": name, "parameters": parameters, "networks": self.networks[name]}
            found[f"measure {name}"] = self.cell("measure", f"measure {name} of {who}", asked, needs, **images)
        if self.study.map_points is not None:
            asked = {"n": self.study.map_points, "seed": SEED}
            found["latent_map"] = self.cell("latent_map", f"map latents of {who}", asked, {"latents": held_out})
        found["reconstruct"] = self.cell(
            "reconstruct", f"reconstruct with {who}", told, {"tokenizer": tokenizer}, **images
        )
        for judge, asked in self._judges():
            found[f"reconstruction_distance {judge}"] = self.cell(
                "reconstruction_distance", f"reconstructions of {who} by {judge}", asked,
                {"reconstructions": self._rebuilt(subject)}, images=self.images.source,
            )  # fmt: skip
        if self.study.decoder_noise:
            judge = self.study.judges[0].extractor
            asked = {
                "noise": list(self.study.decoder_noise),
                "judge": judge,
                "version": self.versions[judge],
                "seed": SEED,
            }
            disturbed = {"tokenizer": tokenizer, "latents": subject.latents}
            found["decoder"] = self.cell("decoder", f"decoder of {who} under noise", asked, disturbed)
        return found

    def _rebuilt(self, subject: "_Subject") -> Cell:
        """Return the cell that reconstructs as many training images as are drawn."""
        settings = {"images": self.images.told, "n": self.study.samples}
        title = f"reconstruct training images with {subject.who}"
        needs = {"tokenizer": subject.tokenizer}
        return self.cell("reconstruct_training", title, settings, needs, images=self.images.source)

    def _judges(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every judge, and what names it and the training images in settings."""
        for judge in self.versions:
            yield judge, self._judge(judge)

    def _judge(self, judge: str) -> dict[str, Any]:
        return {"images": self.images.told, "judge": judge, "version": self.versions[judge]}

    def floors(self) -> dict[str, Cell]:
        """Return, by judge, the cells that judge real images."""
        places = {"images": self.images.source, "held_out": self.held_out.source}
        found = {}
        for judge, asked in self._judges():
            settings = {**asked, "held_out": self.held_out.told, "n": self.study.samples}
            found[judge] = self.cell("floor", f"real images by {judge}", settings, {}, **places)
        return found

    # --- generators ---------------------------------------------------------------------------------------------------

    def _add_rows(
        self, subject: "_Subject", entry: TokenizerEntry, seed: int, generator: GeneratorEntry, generator_seed: int,
        shared: Mapping[str, Cell],
    ) -> None:  # fmt: skip
        """Add the rows of one generator of one seed: one per guidance scale."""
        trained = self._generator(subject, generator, generator_seed, entry.generator_set)
        what = f"{generator.label}{f' (seed {generator_seed})' if generator.seeds != (0,) else ''} on {subject.who}"
        needs = {"generator": trained, "tokenizer": subject.tokenizer}
        common = {**shared, "train_generator": trained}
        if (plan := self.study.trajectories) is not None and generator.kind != "emigm":  # which has no ODE
            asked = {"kind": generator.kind, "n": plan.n, "sampler": plan.settings, "seed": SEED}
            paths = {**needs, "latents": subject.latents}
            common["trajectories"] = self.cell("trajectories", f"paths of {what}", asked, paths)
        for scale in generator.guidance:
            settings = {
                "kind": generator.kind,
                "sampler": {**generator.sample, "cfg_scale": scale},
                "n": self.study.samples,
                "seed": generator_seed,
            }
            sample = self.cell("sample", f"sample {what}, guidance {scale:g}", settings, needs)
            identity = self._identity(entry, seed) | {
                "generator": generator.label, "generator_seed": generator_seed, "guidance": scale,
            }  # fmt: skip
            judges = [one.extractor for one in self.study.judges if one.judges(generator_seed, scale)]
            judged = self._judged(subject, sample, judges, f"{what}, guidance {scale:g}")
            self.rows.append(Row(identity, {**common, "sample": sample, **judged}))

    def _generator(self, subject: "_Subject", generator: GeneratorEntry, seed: int, changes: tuple[str, ...]) -> Cell:
        config = generator_training(generator, seed, changes)
        needs = {"tokenizer": subject.tokenizer, "latents": subject.latents, "held_out": subject.held_out}
        if config["data"]["mirror"]:
            needs["mirrored"] = self._encoded(subject.who, subject.tokenizer, self.images, mirrored=True)
        told = {key: value for key, value in config.items() if key != "data"}
        title = f"train {generator.label} (seed {seed}) on {subject.who}"
        return self.cell("train_generator", title, {"kind": generator.kind, "config": told}, needs)

    def _judged(self, subject: "_Subject", sample: Cell, judges: Sequence[str], what: str) -> dict[str, Cell]:
        """Return what is found out about drawn images and latents, by role."""
        found = {}
        for judge in judges:
            found[f"evaluate {judge}"] = self.cell(
                "evaluate", f"judge {what}, by {judge}", self._judge(judge),
                {"sample": sample, "reconstructions": self._rebuilt(subject)}, images=self.images.source,
            )  # fmt: skip
        needs = {"sample": sample, "latents": subject.latents}
        found["latent_distance"] = self.cell("latent_distance", f"latents of {what}", {"seed": SEED}, needs)
        return found

    def _identity(self, entry: TokenizerEntry, seed: int) -> dict[str, Any]:
        """Return what the table says about who a tokenizer is."""
        other = None if entry.of is None else self.study.tokenizer(entry.of)
        return {
            "tokenizer": entry.label,
            "tokenizer_seed": seed,
            "cluster": entry.cluster or "control",
            "family": entry.family or (other.family if other else ""),
            "control": entry.control or "",
            "control_of": entry.of or "",
            "held_out": entry.label in self.study.analysis.held_out,
        }


@dataclass(frozen=True)
class _Subject:
    """A tokenizer with its latents.

    Attributes:
        who: its name in titles.
        tokenizer: the cell that makes its weights.
        latents: the cell that encodes what generators learn.
        held_out: the cell that encodes what is measured.
    """

    who: str
    tokenizer: Cell
    latents: Cell
    held_out: Cell


def _weight_files(name: str, entry: TokenizerEntry) -> tuple[Path, ...]:
    """Return the files of a tokenizer's weights that the study file names: one, or the two of the TAESD family.

    Raises:
        UserError: there are none, or those of several releases.
    """
    path = Path(str(entry.weights))
    if not path.exists():
        raise UserError(f"tokenizer '{entry.label}': there is no file {path}")
    if name in ZOO and path.is_dir():
        path = published_file(name, path, entry.release)
    if name in ZOO and releases_of(name)[0].family == "taesd":
        return weight_files(name, path)
    if path.is_dir():
        raise UserError(f"tokenizer '{entry.label}': {path} is a folder: give the weight file in it")
    return (path,)


def _own_weights(point: EntryPoint) -> dict[str, str]:
    """Return what names the weights that a plug-in finds by itself.

    Raises:
        UserError: it cannot be opened.
    """
    return {"sha256": weights_digest(load_tokenizer(point.name))}


def _release(name: str, release: str | None) -> dict[str, Any]:
    """Return which weights of a built-in tokenizer are meant, and their hash where it is known: it is part of the key.

    Raises:
        UserError: unknown name or release, or an installation that lacks its embedded weights.
    """
    chosen = releases_of(name)[0] if release is None else find_release(name, release)
    published = None if chosen.weights is None else chosen.weights.sha256
    return {
        "release": chosen.name,
        "sha256": file_sha256(embedded_file(name, chosen)) if chosen.embedded else published,
    }
