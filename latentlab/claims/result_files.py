"""The parts of results files that claims read; everything else in them is ignored.

The files are written by `latentlab ablate`, `latentlab study generators`, `latentlab collapse`, `latentlab trajectories` and
`latentlab evaluate`. A part that is absent or of another type is an error that names it, never a number.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from latentlab.claims.verdict import short

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""Neither text nor NaN."""

Pair = tuple[Number, Number]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Score(_Part):
    """A value with its interval over images."""

    value: Number
    interval: Pair | None = None
    n: int | None = None

    def __str__(self) -> str:
        """Return the value and, where there is one, its interval."""
        ends = "" if self.interval is None else f" [{short(self.interval[0])}, {short(self.interval[1])}]"
        return short(self.value) + ends


class Distance(Score):
    """A Fréchet distance between samples and real images, which is never 0."""

    value: Annotated[Number, Field(gt=0)]


# --- latentlab ablate -------------------------------------------------------------------------------------------------


class Geometry(_Part):
    """Of the token table."""

    latent_norm: Number


class Sampling(_Part):
    """How images were drawn."""

    evaluations_per_image: Number


class Cell(_Part):
    """One row with one seed; without numbers where it failed."""

    seed: int
    error: str | None
    distance: Distance | None = None
    precision: Score | None = None
    geometry: Geometry | None = None
    sampling: Sampling | None = None


class Row(_Part):
    """One row of a grid with its seeds."""

    label: str
    cells: tuple[Cell, ...]

    @property
    def done(self) -> list[Cell]:
        """Cells that did not fail, by seed."""
        return sorted((cell for cell in self.cells if cell.error is None), key=lambda cell: cell.seed)

    def distances(self) -> list[float]:
        """Fréchet distances, by seed."""
        return [cell.distance.value for cell in self.done if cell.distance is not None]


class Reference(_Part):
    """Real images."""

    name: str


class Grid(_Part):
    """Of `latentlab ablate`."""

    command: str | None = None
    base: str | None
    weights: str | None
    samples: int
    extractor: str
    reference: Reference
    rows: tuple[Row, ...]


# --- latentlab study generators ---------------------------------------------------------------------------------------


class Point(_Part):
    """Images of one generator at one guidance scale."""

    scale: Number
    error: str | None = None
    quality: dict[str, Score] = Field(default_factory=dict)


class CurvePoint(_Part):
    """Unguided images after some of the steps."""

    step: int
    error: str | None = None
    quality: dict[str, Score] = Field(default_factory=dict)


class Run(_Part):
    """One training."""

    seed: int
    error: str | None
    curve: tuple[CurvePoint, ...] = ()
    guidance: tuple[Point, ...] = ()

    def distance(self, scale: float) -> Score | None:
        """Return the Fréchet distance at the end of training at a guidance scale."""
        return _distance([point for point in self.guidance if point.scale == scale])

    def distance_after(self, step: int) -> Score | None:
        """Return the unguided Fréchet distance after a number of steps."""
        return _distance([point for point in self.curve if point.step == step])


def _distance(points: Sequence[Point | CurvePoint]) -> Score | None:
    found = [point.quality for point in points if point.error is None]
    return next((s for k, s in found[0].items() if k.startswith(("fd_", "fid"))), None) if found else None


class Entrant(_Part):
    """A generator with its trainings."""

    label: str
    kind: str
    tokenizer: str | None = None
    parameters: int
    steps: int | None = None
    batch_size: int = 1
    train: dict[str, Any] = Field(default_factory=dict)
    runs: tuple[Run, ...]

    def scores(self, scale: float = 1.0) -> list[Score]:
        """Return the distances of the trainings that did not fail."""
        found = [run.distance(scale) for run in self.runs if run.error is None]
        return [score for score in found if score is not None]

    def scores_by(self, step: int) -> tuple[int, list[Score]] | None:
        """Return the last point of the learning curve that comes no later than ``step``, and the unguided distances there."""
        points = {point.step for run in self.runs for point in run.curve if point.step <= step}
        if not points:
            return None
        found = [run.distance_after(max(points)) for run in self.runs if run.error is None]
        return max(points), [score for score in found if score is not None]


class Comparison(_Part):
    """Of `latentlab study generators`."""

    command: str | None = None
    samples: int
    extractor: str
    reference: Reference
    generators: tuple[Entrant, ...]
    floors: dict[str, dict[str, Score]] = Field(default_factory=dict)


# --- latentlab collapse, trajectories, evaluate -----------------------------------------------------------------------


class Bottleneck(_Part):
    """All runs of one tokenizer and setting."""

    path: str
    tokenizer: str
    setting: str
    dims: int
    sphere: str
    images: int
    seeds: int
    unit: str
    index: Score
    index_heldout_views: Score


class Curves(_Part):
    """Over training, on one set of views."""

    to_reconstruction: Annotated[tuple[Number, ...], Field(min_length=1)]


class References(_Part):
    """Perceptual distances that need no bottleneck."""

    other_view: Annotated[Number, Field(gt=0)]


class BottleneckRun(_Part):
    """One run of one tokenizer and setting, on one image."""

    path: str
    tokenizer: str
    dims: int
    sphere: str
    subject: int
    seed: int
    curves: dict[str, Curves]
    references: References

    @property
    def index(self) -> float:
        """Collapse index on the fitted views at the end."""
        return self.curves["fitted"].to_reconstruction[-1] / self.references.other_view


class Named(_Part):
    """The name of a data set."""

    name: str


class Collapse(_Part):
    """Of `latentlab collapse`."""

    command: str | None = None
    perceptual: str
    data: Named
    summaries: tuple[Bottleneck, ...]
    runs: tuple[BottleneckRun, ...] = ()


class Measured(_Part):
    """One measurement."""

    name: str
    value: Number
    interval: Pair | None = None
    n: int
    companions: dict[str, Score] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)


class Trajectories(_Part):
    """Of `latentlab trajectories`."""

    command: str | None = None
    name: str
    measurements: tuple[Measured, ...]


class Evaluated(_Part):
    """Of `latentlab evaluate`."""

    command: str | None = None
    measurements: tuple[Measured, ...]

    def distances(self) -> dict[str, Measured]:
        """Return the Fréchet distances by name."""
        return {one.name: one for one in self.measurements if one.name.startswith(("fd_", "fid"))}
