"""The study file: which tokenizers, measurements and generators, and what is asked of their samples.

```yaml
title: A small study
images: fashion:train                 # generators learn these; samples are compared with them
held_out_images: fashion:test         # latents are measured on these, and reconstructions judged
tokenizers:
- {label: ae, cluster: baseline, family: conv, train: ae, set: [optimiser.steps=500], seeds: [0, 1]}
- {label: kl, cluster: kl, family: conv, name: kl, release: fashion32}
- {label: ae-mixed, control: orthogonal, of: ae}
measure: {viv: {}, lnc: {k: 5}}
map_points: 2000
decoder_noise: [0.1, 0.3]
generators:
- {label: sit, kind: sit, base: sit-fashion, set: [optimiser.steps=500], seeds: [0, 1], sample: {steps: 50}, guidance: [1.0, 1.5]}
samples: 5000
judges: [fashion-classifier]
trajectories: {n: 256}
resources: {train_generator: {cpus: 1, gpus: 0}}
analysis: {held_out: [kl]}
```
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from latentlab.configuration import Strict, read_config
from latentlab.errors import unknown_name
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.stages.known import STAGES

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=60)]
"""A name in tables and of folders."""

Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


Parameters = Annotated[dict[str, Any], BeforeValidator(_or_empty)]
"""Settings by name; nothing after the colon means none."""


class Keyed(Strict):
    """Settings that name the nearest keys when one is unknown."""

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(str(unknown_name("key", str(key), cls.model_fields)))
        return values


class TokenizerEntry(Keyed):
    """One tokenizer: trained here (``train``), at hand (``name``, ``weights``), or made of another one (``control``, ``of``)."""

    label: Label
    """In tables and figures; unique."""
    cluster: str = ""
    """Kind of regulariser; of a control ``control`` when left out."""
    family: str = ""
    """Architecture; of a control that of the other tokenizer."""
    train: str | None = None
    """Training configuration: a shipped name, a YAML file, or ``FILE#ROW``."""
    set: tuple[str, ...] = ()
    """Changes to it, ``a.b=value``."""
    seeds: Seeds = (0,)
    """One training each; of a control: which trainings of the other tokenizer."""
    name: str | None = None
    """Tokenizer at hand: see `latentlab tokenizers`."""
    release: str | None = None
    """Which weights of it; null for what suits the images."""
    weights: Path | None = None
    """Weights of it, instead of a release's."""
    control: str | None = None
    """Transformation of the latents: a name of `latentlab.tokenizers.controls`."""
    of: str | None = None
    """Label of the tokenizer that a control is made of."""
    generators: tuple[str, ...] | None = None
    """Labels of the generators that learn its latents; None for all."""
    generator_set: tuple[str, ...] = ()
    """Changes to every generator on its latents, such as a patch that gives 1-D latents as many tokens as the others have."""
    generator_seeds: Seeds | None = None
    """Seeds of theirs; None for all."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        at_hand = self.name is not None or self.weights is not None
        if sum([self.train is not None, at_hand, self.control is not None]) != 1:
            raise ValueError(f"tokenizer '{self.label}': give one of train, name (or weights), and control with of")
        if (self.control is None) != (self.of is None):
            raise ValueError(f"tokenizer '{self.label}': control and of go together")
        if self.train is None and self.set:
            raise ValueError(f"tokenizer '{self.label}': set goes with train")
        if at_hand and self.seeds != (0,):
            raise ValueError(f"tokenizer '{self.label}': weights at hand have no seeds: leave them out")
        if self.control is None and not self.cluster:
            raise ValueError(f"tokenizer '{self.label}': say its cluster (baseline, kl, ...)")
        if self.control is None and not self.family:
            raise ValueError(
                f"tokenizer '{self.label}': say its family, the architecture (conv, transformer, 1-d, ...)"
            )
        _distinct(f"tokenizer '{self.label}': seeds", self.seeds)
        return self


class GeneratorEntry(Keyed):
    """One generator, trained on the latents of every tokenizer."""

    label: Label
    """In tables and figures; unique."""
    kind: str
    """``mind``, ``sit``, ``lightningdit``, ``dit`` or ``emigm``."""
    base: str
    """Training configuration: a shipped name or a YAML file. Its data are those of the study."""
    set: tuple[str, ...] = ()
    """Changes to it, ``a.b=value``."""
    seeds: Seeds = (0,)
    """One training each, and samples drawn with the same seed."""
    sample: Parameters = Field(default_factory=dict)
    """Sampler settings, but the scale of guidance."""
    guidance: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    """Scales; 1 is no guidance."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        from mind.kinds import KINDS

        if self.kind not in KINDS:
            raise ValueError(str(unknown_name("kind of generator", self.kind, KINDS)))
        if "cfg_scale" in self.sample:
            raise ValueError(f"generator '{self.label}': cfg_scale is swept: give the scales in guidance")
        _distinct(f"generator '{self.label}': seeds", self.seeds)
        _distinct(f"generator '{self.label}': guidance", self.guidance)
        return self


class JudgeEntry(Keyed):
    """One feature extractor that judges images. A dear one may judge some samples only; reconstructions it judges of all."""

    extractor: str
    """Name of the feature extractor, as in `latentlab evaluate --extractor`."""
    guidance: Annotated[tuple[Scale, ...], Field(min_length=1)] | None = None
    """Scales whose samples it judges; None for all."""
    generator_seeds: Seeds | None = None
    """Seeds of generators whose samples it judges; None for all."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        return {"extractor": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.extractor == "auto":
            raise ValueError("judge 'auto' is another network on another machine: name the one that judges")
        return self

    def judges(self, generator_seed: int, scale: float) -> bool:
        """Return whether it judges samples of a generator of this seed at this guidance scale."""
        seeds, scales = self.generator_seeds, self.guidance
        return (seeds is None or generator_seed in seeds) and (scales is None or scale in scales)


class TrajectoryPlan(Keyed):
    """Sampling paths of every generator without guidance, whose straightness is measured."""

    n: PositiveInt = 256
    """Paths per generator."""
    settings: Parameters = Field(default_factory=dict)
    """Sampler settings that differ from 50 Euler steps of the ODE."""


class Resources(Keyed):
    """What a cell takes of its machine."""

    cpus: PositiveInt = 1
    """Threads it computes with."""
    gpus: NonNegativeFloat = 0.0
    """Shares of a GPU; with 0 it computes on the CPU."""
    memory: PositiveFloat | None = None
    """GiB; None where it does not matter."""


class StudyFile(Keyed):
    """A whole study."""

    title: str
    """In a few words."""
    images: str
    """Images as in ``--data``, whose latents the generators learn."""
    limit: PositiveInt | None = None
    """At most so many of them, balanced over classes."""
    held_out_images: str
    """On their latents everything is measured; their reconstructions are judged."""
    held_out_limit: PositiveInt | None = None
    """At most so many of them, balanced over classes."""
    tokenizer_set: tuple[str, ...] = ()
    """Changes to every training of a tokenizer, ``a.b=value``; its own ``set`` comes after them."""
    tokenizers: Annotated[tuple[TokenizerEntry, ...], Field(min_length=1)]
    measure: dict[str, Parameters] = Field(default_factory=dict)
    """Measurement -> its parameters."""
    map_points: PositiveInt | None = None
    """Held-out latents of every tokenizer that are drawn as a map (UMAP); None draws none."""
    decoder_noise: tuple[PositiveFloat, ...] = ()
    """Sizes of noise on normalised latents under which decoders are tried; none leaves it out."""
    generators: Annotated[tuple[GeneratorEntry, ...], Field(min_length=1)]
    samples: Annotated[int, Field(ge=4)]
    """Images per generator, seed and guidance scale."""
    judges: Annotated[tuple[JudgeEntry, ...], Field(min_length=1)]
    """Feature extractors that judge images: names, or a name with the samples that are judged. The first one tries decoders."""
    trajectories: TrajectoryPlan | None = None
    resources: dict[str, Resources] = Field(default_factory=dict)
    """By stage."""
    retries: NonNegativeInt = 1
    """How often a failed cell is tried again."""
    analysis: AnalysisPlan = AnalysisPlan()
    """What is asked of the finished table; stated before it is there."""

    @model_validator(mode="before")
    @classmethod
    def _no_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and {"base", "rows"} <= values.keys():
            raise ValueError(
                "this is a list of tokenizers, not a study: name its rows in the tokenizers of a study file, as 'train: FILE#ROW'"
            )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tokenizers, generators = ([one.label for one in group] for group in (self.tokenizers, self.generators))
        _distinct("labels of tokenizers", tokenizers)
        _distinct("labels of generators", generators)
        _distinct("judges", [one.extractor for one in self.judges])
        self._check_judged_samples()
        for stage in self.resources:
            _known("stage", stage, STAGES)
        for label in self.analysis.held_out:
            _known("tokenizer in analysis.held_out", label, tokenizers)
        for one in self.tokenizers:
            for label in one.generators or ():
                _known(f"generator of tokenizer '{one.label}'", label, generators)
            if one.of is not None:
                self._check_control(one)
        return self

    def _check_judged_samples(self) -> None:
        scales = {scale for one in self.generators for scale in one.guidance}
        seeds = {seed for one in self.generators for seed in one.seeds}
        for judge in self.judges:
            for what, asked, drawn in (("scale", judge.guidance, scales), ("seed", judge.generator_seeds, seeds)):
                if unknown := set(asked or ()) - drawn:
                    raise ValueError(f"judge '{judge.extractor}': no generator has the {what} {min(unknown):g}")

    def _check_control(self, control: TokenizerEntry) -> None:
        _known(f"tokenizer of control '{control.label}'", str(control.of), [one.label for one in self.tokenizers])
        other = self.tokenizer(str(control.of))
        if other.of is not None:
            raise ValueError(
                f"tokenizer '{control.label}': '{other.label}' is a control itself: name what it is made of"
            )
        if missing := set(control.seeds) - set(other.seeds):
            raise ValueError(f"tokenizer '{control.label}': '{other.label}' has no seed {min(missing)}")

    def tokenizer(self, label: str) -> TokenizerEntry:
        """Return the tokenizer with a label that is known to exist."""
        return next(one for one in self.tokenizers if one.label == label)

    def takes(self, stage: str) -> Resources:
        """Return what a cell of a stage takes."""
        return self.resources.get(stage, Resources())


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyFile:
    """Read a study file.

    Args:
        path: a YAML file.
        overrides: ``samples=500``, ``trajectories.n=64``; applied in order.

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value out of range; names the first one, with near misses.
    """
    return read_config(StudyFile, path, overrides, {}, "study file")


def _distinct(what: str, values: Sequence[Any]) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{what}: {twice[0]} is there twice")


def _known(kind: str, name: str, names: Any) -> None:
    if name not in names:
        raise ValueError(str(unknown_name(kind, name, names)))
