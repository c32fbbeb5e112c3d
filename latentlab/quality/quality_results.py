"""What one evaluation found: the content of its ``results.json``, and the table for reading."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from latentlab import __version__
from latentlab.files import write_json
from latentlab.measurement import Measurement
from latentlab.report_table import number
from latentlab.results import environment

SCHEMA_VERSION = 1
"""Version of the form; raised when a key changes its meaning or disappears."""

_COLUMNS = ("metric", "value", "95 % interval", "better", "n", "variant")
_PLAIN_WIDTH = 160


@dataclass(frozen=True)
class QualityResults:
    """One evaluation; the attributes are the keys of ``results.json``.

    Attributes:
        samples: the generated images: where, how many, fingerprint, and how they were made.
        reference: what they were compared with: where, hash or fingerprint, and what it holds.
        validation: the further real images of FDr, None where there were none.
        measurements: every value, each with its provenance.
        refused: metric and extractor -> why it was not made.
        settings: of the metrics.
        seed: of bootstraps.
        device: where features were computed.
        command: command line, None when called from Python.
        created: UTC, ISO 8601.
        environment: Python, platform and library versions.
    """

    samples: Mapping[str, Any]
    reference: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    measurements: tuple[Measurement, ...]
    refused: Mapping[str, str]
    settings: Mapping[str, Any]
    seed: int
    device: str
    command: str | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    environment: Mapping[str, Any] = field(default_factory=environment)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "latentlab": __version__,
            "created": self.created,
            "command": self.command,
            "samples": dict(self.samples),
            "reference": dict(self.reference),
            "validation": None if self.validation is None else dict(self.validation),
            "seed": self.seed,
            "device": self.device,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "refused": dict(self.refused),
        }

    def write(self, folder: Path) -> None:
        """Write ``results.json`` into ``folder``, atomically."""
        write_json(folder / "results.json", self.to_dict())

    def print(self, file: TextIO | None = None) -> None:
        """Print table, warnings and refusals to ``file`` (default: stdout); plain text unless it is a terminal."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        file = file or sys.stdout
        console = Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False, markup=False)
        console.print(Text(self._heading()), soft_wrap=True)  # paths may be long
        table = Table()
        for column in _COLUMNS:
            right = column in _COLUMNS[1:3] or column == "n"
            table.add_column(column, justify="right" if right else "left", no_wrap=column != "variant", overflow="fold")
        for row in self._rows():
            table.add_row(*map(Text, row), style="dim" if row[0].startswith(" ") else None)
        console.print(table)
        for line in self._remarks():
            console.print(Text(line), soft_wrap=True)  # one line each, also for grep

    def _heading(self) -> str:
        samples, reference = self.samples, self.reference
        against = (
            f"{reference['n']:,} images of {reference['path']}"
            if "n" in reference
            else f"statistics of {reference['path']}"
        )
        return f"{samples['n']:,} images of {samples['path']} against {against}"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for m in self.measurements:
            ends = "-" if m.interval is None else f"{number(m.interval[0])} .. {number(m.interval[1])}"
            yield m.name, number(m.value), ends, m.direction, f"{m.n:,}", m.variant
            for name, estimate in m.companions.items():
                yield f"  {name}", number(estimate.value), "", "", "", ""

    def _remarks(self) -> list[str]:
        said: dict[str, list[str]] = {}
        for measurement in self.measurements:
            for warning in measurement.warnings:
                said.setdefault(warning, []).append(measurement.name)
        lines = [f"{', '.join(names)}: {warning}" for warning, names in said.items()]
        return lines + [f"{name}: not measured: {reason}" for name, reason in self.refused.items()]
