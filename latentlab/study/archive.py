"""Finished cells of a study as files to keep, or to carry to another machine: what they found, without what they made for it.

A folder of zip files, one per tokenizer of the study file. Each holds, as ``STAGE/KEY/``, the finished cells of that tokenizer:
``cell.json``, ``result.json``, ``done.json``, and the pictures and details that figures and reports show. Weights, latents and
samples are left out: a cell whose files an unfinished one needs is done again.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from latentlab.encoding import slug
from latentlab.errors import UserError
from latentlab.files import atomic_path
from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.cells.process import CELL, DONE, RESTORED, RESULT
from latentlab.study.cells.state import is_done, settled, states
from latentlab.study.collect import shown_files
from latentlab.study.plan_file import StudyFile
from latentlab.study.stages.known import STAGES

_WHEN = (1980, 1, 1, 0, 0, 0)
"""Time of every member, so that the same cells make the same bytes."""

_MOST_BYTES = 1 << 26
"""Of one member: pictures and JSON files are far smaller."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

Files = dict[str, bytes]
"""Name in the folder of a cell -> content."""


class Archive:
    """The cells in a folder of archives, read into memory: a few MB.

    Attributes:
        folder: of the zip files.
    """

    def __init__(self, folder: Path) -> None:
        """Read every zip file of a folder.

        Args:
            folder: what `write_archive` wrote.

        Raises:
            UserError: there is none in it, or a file that is no archive of a study.
        """
        self.folder = folder
        files = sorted(folder.glob("*.zip"))
        if not files:
            raise UserError(f"{folder} holds no archive of a study: give the folder of `latentlab study archive --to`")
        self._cells: dict[str, Files] = {}
        for file in files:
            for (_, key), found in _cells_of(file).items():
                self._cells.setdefault(key, found)

    def keys(self, graph: Graph) -> frozenset[str]:
        """Return the keys of the cells of a study that are in the archive.

        Raises:
            UserError: none is.
        """
        keys = frozenset(cell.key for cell in graph.cells if cell.key in self._cells)
        if not keys:
            raise UserError(
                f"{self.folder} knows no cell of this study: it is of another study, of other images (of folders their times "
                "count) or of another version of latentlab; without --archive everything is computed"
            )
        return keys

    def files(self, cell: Cell) -> Files:
        """Return the files of a cell that the archive has.

        Raises:
            UserError: the archive is damaged.
        """
        found = self._cells[cell.key]
        for name in (CELL, RESULT, DONE):
            try:
                whole = isinstance(json.loads(found[name]), dict)
            except (KeyError, ValueError):
                whole = False
            if not whole:
                raise UserError(
                    f"{self.folder} lacks {name} of the cell '{cell.title}', or it is damaged: archive the study again"
                )
        return found


def restore(graph: Graph, out: Path, archive: Archive) -> int:
    """Write the cells of an archive that need not be done again into the folder of a study; return how many these are.

    The caller holds the folder (`latentlab.study.engine.run.only_one`).

    Args:
        graph: the cells of the study.
        out: its folder.
        archive: where finished ones are.

    Raises:
        UserError: no cell of the study is in the archive, it is damaged, or the folder cannot be written.
    """
    wanted = settled(graph, out, archive.keys(graph))
    missing = [cell for cell in graph.cells if cell.key in wanted and not is_done(cell.folder(out))]
    for cell in missing:
        files = archive.files(cell)
        done = json.loads(files.pop(DONE)) | {RESTORED: True}
        for name, content in files.items():
            _write(cell.folder(out) / name, content)
        _write(cell.folder(out) / DONE, _json(done))  # last: now it counts
    return len(missing)


def write_archive(study: StudyFile, graph: Graph, out: Path, folder: Path) -> list[Path]:
    """Write every finished cell of a study to archives; return the files that hold them.

    What the archives hold already stays, be it of another sitting, plan or study: archiving only adds.

    Args:
        study: its file.
        graph: its cells.
        out: its folder.
        folder: of the archives; made if need be.

    Raises:
        UserError: nothing is finished, a file of a finished cell is gone, an archive is damaged, or it cannot be written.
    """
    known = states(graph, out)
    shown: dict[str, list[str]] = {}
    for cell, name in shown_files(graph, out, known).values():
        shown.setdefault(cell.key, []).append(name)
    new: dict[Path, dict[tuple[str, str], Files]] = {}
    for cell in graph.cells:
        if known[cell.key].state == "done":
            place = folder / f"{slug(study.tokenizers[graph.owners[cell.key]].label)}.zip"
            new.setdefault(place, {})[cell.stage, cell.key] = _own_files(cell, out, shown.get(cell.key, []))
    if not new:
        raise UserError(f"{out} has no finished cell yet: run `latentlab study run` first")
    for place, cells in new.items():
        before = _cells_of(place) if place.exists() else {}
        _write_zip(place, before | {name: before.get(name, {}) | files for name, files in cells.items()})
    return list(new)


def _own_files(cell: Cell, out: Path, shown: list[str]) -> Files:
    """Return the files of a finished cell."""
    folder = cell.folder(out)
    try:
        files = {name: (folder / name).read_bytes() for name in (CELL, RESULT, DONE, *shown)}
    except OSError as error:
        raise UserError(f"{error.filename} is gone: delete the folder of that cell and run the study again") from error
    done = json.loads(files[DONE])
    done.pop(RESTORED, None)
    return files | {DONE: _json(done)}


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _write_zip(path: Path, cells: Mapping[tuple[str, str], Files]) -> None:
    members = {f"{stage}/{key}/{name}": files[name] for (stage, key), files in cells.items() for name in files}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
        for name in sorted(members):
            zipped.writestr(zipfile.ZipInfo(name, _WHEN), members[name], zipfile.ZIP_DEFLATED)


def _cells_of(file: Path) -> dict[tuple[str, str], Files]:
    """Return stage and key -> files of every cell in a zip file."""
    cells: dict[tuple[str, str], Files] = {}
    with _opened(file) as zipped:
        for info in zipped.infolist():
            stage, key, name = _checked(info, file)
            cells.setdefault((stage, key), {})[name] = zipped.read(info)
    return cells


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as zipped:
            yield zipped
    except (
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
    ) as error:  # the last: encrypted, unknown method
        raise UserError(f"{file} is not a readable archive of a study ({error}): archive the study again") from error


def _checked(info: zipfile.ZipInfo, file: Path) -> tuple[str, str, str]:
    """Return stage, key and name of a member; none of its parts may lead out of the folder of its cell."""
    parts = info.filename.split("/")
    plain = all(_PLAIN_NAME.fullmatch(part) for part in parts)
    if not plain or len(parts) < 3 or parts[0] not in STAGES or info.file_size > _MOST_BYTES:
        raise UserError(f"{file} is not an archive of a study: '{info.filename}' is no file of a cell")
    return parts[0], parts[1], "/".join(parts[2:])
