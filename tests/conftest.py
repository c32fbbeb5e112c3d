"""What tests of several folders share."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_EXAMPLE = Path(__file__).parent / "plugin_example"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave torch as many threads as it had: with others its kernels round otherwise, in the tests that follow."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encode into a cache that the tests of a module share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def installed_example(tmp_path: Path) -> tuple[Path, Path]:
    """Install the example as an editable installation would; return the folders of its metadata and of its code."""
    project = tomllib.loads((_EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site, _EXAMPLE
