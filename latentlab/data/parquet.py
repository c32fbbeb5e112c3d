"""Hugging Face image data sets as parquet files: ``parquet:FILES`` (a glob, or files separated by commas)."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentlab.data.base import DataRequest
from latentlab.data.encoded import EncodedImages
from latentlab.errors import UserError
from latentlab.files import quick_fingerprint

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")

DEFAULT_SIZE = 256


@dataclass(frozen=True)
class _File:
    """What opening one parquet file tells; images are not read yet."""

    path: Path
    metadata: pq.FileMetaData
    image_column: str
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None

    @property
    def group_rows(self) -> list[int]:
        return [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]


class ParquetImages(EncodedImages):
    """The images of one or more parquet files, in the order of the files and of their rows.

    Labels are read while opening; images one row group at a time, of which the last is kept. Memory is therefore one row
    group and one batch, whatever the size of the set; reading in order is fast, reading at random decodes a row group anew
    for every jump.
    """

    def __init__(
        self,
        request: DataRequest,
        paths: Sequence[Path],
        default_size: int = DEFAULT_SIZE,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        """Open ``paths``; ``class_names`` are used when the files do not name their classes.

        Raises:
            UserError: a file is missing, is not parquet, has no images or no rows, or the files do not belong together.
        """
        request.refuse_masks("only imagefolder:DIR has paths that masks can be matched with")
        self._files = [_inspect(path) for path in paths]
        labels, named = _join_labels(self._files)
        sizes = [(i, j, rows) for i, file in enumerate(self._files) for j, rows in enumerate(file.group_rows)]
        self._groups = [(i, j) for i, j, _ in sizes]
        self._ends = np.cumsum(
            [rows for _, _, rows in sizes], dtype=np.int64
        )  # row after the last one of each row group
        self._kept: tuple[int, Any] = (-1, None)
        self._lock = Lock()
        total = int(self._ends[-1]) if len(sizes) else 0
        if total == 0:
            raise UserError(f"{request.source} has no rows")
        super().__init__(request, total, labels, named or class_names, default_size)
        self.fingerprint = self._fingerprint(files=[quick_fingerprint(path) for path in paths])

    def _encoded(self, rows: np.ndarray) -> Sequence[bytes]:
        groups = np.searchsorted(self._ends, rows, side="right")
        encoded: list[bytes] = [b""] * len(rows)
        for group in np.unique(groups):
            column = self._images_of(int(group))
            first = self._ends[group] - len(column)
            for i in np.flatnonzero(groups == group):
                # A copy, so that the batch does not keep the whole row group; a missing image becomes empty bytes.
                encoded[i] = column[int(rows[i] - first)].as_py() or b""
        return encoded

    def _row_name(self, row: int) -> str:
        file, _ = self._groups[np.searchsorted(self._ends, row, side="right")]
        before = sum(f.metadata.num_rows for f in self._files[:file])
        return f"{self._files[file].path} row {row - before}"

    def _images_of(self, group: int) -> pa.ChunkedArray:
        """Return the encoded images (binary) of a row group, from memory when it is the one read last."""
        with self._lock:
            if self._kept[0] != group:
                file, index = self._groups[group]
                self._kept = (group, _read_images(self._files[file], index))
            return self._kept[1]


def open_source(request: DataRequest) -> ParquetImages:
    """Open ``parquet:FILES``."""
    return ParquetImages(request, find_files(request.argument))


def find_files(pattern: str) -> list[Path]:
    """Return the files of a glob (sorted), or of a comma-separated list of files and globs (in the order given).

    Raises:
        UserError: a part of the list matches no file.
    """
    parts = [pattern] if Path(pattern).expanduser().exists() else pattern.split(",")
    found = [path for part in parts if part.strip() for path in _matches(part.strip())]
    if not found:
        raise UserError(f"'{pattern}' names no parquet file: write parquet:FILE, a glob, or a list with commas")
    return found


def _matches(part: str) -> list[Path]:
    path = Path(part).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder: write 'parquet:{path}/*.parquet'")
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if not found:
        raise UserError(f"no parquet file matches {part}")
    return found


def _inspect(path: Path) -> _File:
    """Read schema and labels of one file."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image_column = _image_column(path, schema)
            label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
            class_names = None if label_column is None else _class_names(schema, label_column)
            labels = None
            if label_column is not None:
                labels = _labels(path, file.read(columns=[label_column]).column(0), class_names)
            return _File(path, file.metadata, image_column, labels, class_names)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a parquet file: {_first_line(error)}") from error


def _image_column(path: Path, schema: pa.Schema) -> str:
    name = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    if name is None:
        raise UserError(f"{path} has no column {' or '.join(IMAGE_COLUMNS)}: it has {', '.join(schema.names)}")
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"{path}: column {name} must hold encoded images, as binary or {{bytes, path}}, not {kind}")
    return name


def _labels(path: Path, column: pa.ChunkedArray, class_names: tuple[str, ...] | None) -> np.ndarray | None:
    """Return labels int64 [n]; None where all are -1, which is how the hub marks an unlabelled split."""
    if not pa.types.is_integer(column.type) or column.null_count:
        what = f"{column.null_count} missing values" if column.null_count else f"type {column.type}"
        raise UserError(f"{path}: the label column has {what}, needed is an integer in every row")
    labels = column.to_numpy().astype(np.int64)
    if len(labels) and (labels == -1).all():
        return None
    outside = (labels < 0) | (labels >= len(class_names) if class_names else False)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise UserError(f"{path} row {row}: label {labels[row]} is outside the classes of the file")
    return labels


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """Return the ClassLabel names that the ``datasets`` library keeps in the schema, None where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names))


def _join_labels(files: Sequence[_File]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    first = files[0]
    for file in files[1:]:
        if (file.labels is None) != (first.labels is None) or file.class_names != first.class_names:
            raise UserError(f"{first.path} and {file.path} differ in labels or class names: open them one by one")
    if first.labels is None:
        return None, None
    return np.concatenate([file.labels for file in files if file.labels is not None]), first.class_names


def _read_images(file: _File, group: int) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(file.path, metadata=file.metadata) as opened:
            column = opened.read_row_group(group, columns=[file.image_column]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file.path}: row group {group} cannot be read: {_first_line(error)}") from error
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
