"""Configuration files: YAML, checked against a pydantic model, with ``--set a.b=value`` from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentlab.errors import UserError, unknown_name
from latentlab.files import first_problem

M = TypeVar("M", bound=BaseModel)

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much of an average Adam keeps at every step."""


class Strict(BaseModel):
    """Settings that refuse unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(Strict):
    """Settings that a user makes in Python too: a mistake is a `UserError`, not pydantic's."""

    what: ClassVar[str] = "settings"
    """What the settings are of, for messages."""

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, **values: Any) -> None:
            """Check the fields.

            Raises:
                UserError: unknown field or value; says which.
            """
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise UserError(f"{self.what}: {problem_with(type(self), error)}") from error


def read_config(
    model: type[M], path: str | Path, overrides: Sequence[str], shipped: Mapping[str, Path], kind: str
) -> M:
    """Read settings from a YAML file.

    Args:
        model: what the file must hold.
        path: a YAML file, or a name in ``shipped``.
        overrides: ``a.b=value`` with the value in YAML; applied in order.
        shipped: name -> file of the configurations that come with the package.
        kind: what is configured, for messages (``tokenizer configuration``).

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, a value out of range.
    """
    file = _find(path, shipped, kind)
    return checked_config(model, file, _read_table(file), overrides)


def checked_config(model: type[M], file: Path | str, content: dict[str, Any], overrides: Sequence[str]) -> M:
    """Return the ``content`` of a file with overrides as settings.

    Raises:
        UserError: an unknown or missing key, a value out of range; says so of ``file``.
    """
    for override in overrides:
        _apply(content, override)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file}: {problem_with(model, error)}") from error


def problem_with(model: type[BaseModel], error: ValidationError) -> str:
    """Return the first problem of settings in one line; of a key that does not exist with the nearest ones that do."""
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return first_problem(error)
    *path, key = map(str, first["loc"])
    table: type[BaseModel] | None = model
    for part in path:
        if table is not None and not part.isdecimal():  # a number: the entries of a list are of one kind
            table = _table_of(table.model_fields[part].annotation) if part in table.model_fields else None
    if table is None:
        return first_problem(error)
    return str(unknown_name(f"key of {'.'.join(path)}" if path else "key", key, table.model_fields))


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """Return the settings that a key takes; None if it takes something else."""
    candidates = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
    return next((one for one in candidates if issubclass(one, BaseModel)), None)


def shipped_configs(folder: Path) -> dict[str, Path]:
    """Return the YAML files of ``folder`` by name, the part before the first underscore: ``ibq_fashion32.yaml`` is ``ibq``."""
    return {file.stem.partition("_")[0]: file for file in sorted(folder.glob("*.yaml"))}


def _find(path: str | Path, shipped: Mapping[str, Path], kind: str) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if file.parent.name == "configs" and file.stem in shipped:  # as if the shipped ones lay in the working directory
        return shipped[file.stem]
    if file.suffix or len(file.parts) > 1:
        others = f"; shipped ones: {', '.join(shipped)}" if shipped else ""
        raise UserError(f"there is no {kind} {file}{others}")
    if str(path) not in shipped:
        raise unknown_name(kind, str(path), shipped)
    return shipped[str(path)]


def _read_table(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a table of settings, got {type(content).__name__}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in the nested tables of ``content``."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set expects KEY=VALUE (for example optimiser.steps=100), got '{override}'")
    *parents, last = key.split(".")
    table: Any = content
    for parent in parents:
        table = table.setdefault(parent, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UserError(f"--set {key}: '{'.'.join(parents)}' is not a table of settings")
    try:
        table[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: '{text}' is not a YAML value") from error
