"""Configuration files: what is read, what overrides change, and how mistakes are named."""

from pathlib import Path

import pytest
from pydantic import PositiveInt, ValidationError

from latentlab.configuration import Strict, read_config, shipped_configs
from latentlab.errors import UserError


class Inner(Strict):
    steps: PositiveInt
    rate: float = 0.5


class Entry(Strict):
    label: str


class Settings(Strict):
    name: str
    entries: tuple[Entry, ...] = ()
    inner: Inner
    parts: dict[str, int] | None = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small_32px.yaml").write_text("name: small\ninner: {steps: 3}\n")
    (tmp_path / "wide-b.yaml").write_text("name: wide\ninner: {steps: 4, rate: 1}\n")
    return tmp_path


def read(folder: Path, path: str | Path, *overrides: str) -> Settings:
    return read_config(Settings, path, overrides, shipped_configs(folder), "test configuration")


def test_names_end_at_the_underscore(folder: Path) -> None:
    assert shipped_configs(folder) == {"small": folder / "small_32px.yaml", "wide-b": folder / "wide-b.yaml"}
    assert read(folder, "wide-b") == Settings(name="wide", inner=Inner(steps=4, rate=1.0))
    assert read(folder, folder / "small_32px.yaml").inner == Inner(steps=3, rate=0.5)


def test_overrides_are_yaml_and_the_last_one_counts(folder: Path) -> None:
    settings = read(folder, "small", "inner.steps=7", "inner.steps=8", "name='5'", "parts.a=1", "inner.rate=1.0e-3")
    assert settings == Settings(name="5", inner=Inner(steps=8, rate=1e-3), parts={"a": 1})
    assert read(folder, "small", "inner={steps: 2}").inner.steps == 2


def test_settings_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(ValidationError):
        read(folder, "small").name = "other"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.steps=0", r"small_32px.yaml: inner\.steps: Input should be greater than 0"),
        ("inner.step=5", r"unknown key of inner 'step'\. Did you mean steps"),
        ("entries=[{label: a, lable: b}]", r"unknown key of entries\.0 'lable'\. Did you mean label"),
        ("inner=3", "inner: Input should be"),
        ("inner.steps", "--set expects KEY=VALUE .*got 'inner.steps'"),
        ("=1", "--set expects KEY=VALUE"),
        ("name.x=1", "--set name.x: 'name' is not a table"),
        ("name=[", r"--set name: '\[' is not a YAML value"),
    ],
)
def test_bad_overrides_are_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(folder, "small", override)


def test_bad_files_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"unknown test configuration 'smal'. Did you mean small\?"):
        read(folder, "smal")
    with pytest.raises(UserError, match=r"there is no test configuration .*absent.yaml; shipped ones: small, wide-b"):
        read(folder, folder / "absent.yaml")
    for name, content, message in [
        ("list.yaml", b"- 1", "must hold a table of settings, got list"),
        ("empty.yaml", b"", "must hold a table of settings, got NoneType"),
        ("broken.yaml", b"a: [", "not a readable YAML"),
        ("binary.yaml", b"\xff\xfe\x00", "not a readable YAML"),
    ]:
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*{message}") as caught:
            read(folder, folder / name)
        assert "\n" not in str(caught.value)
