"""What can be written after --data, and what the answer is when it cannot be opened."""

import subprocess
import sys
from pathlib import Path

import pytest

from latentlab.data import ImageSet, data_sources, open_data
from latentlab.errors import UserError


def test_every_source_is_listed() -> None:
    assert [usage.partition(":")[0].partition("[")[0] for usage in data_sources()] == [
        "fashion",
        "imagefolder",
        "parquet",
        "cifar10",
    ]


def test_opens_an_image_set_named_as_written() -> None:
    data = open_data("fashion:train", limit=20)
    assert isinstance(data, ImageSet)
    assert (data.name, data.n) == ("fashion:train", 20)


def test_unknown_source_suggests() -> None:
    with pytest.raises(UserError, match=r"unknown data source 'imagefoldr'\. Did you mean imagefolder\?.*cifar10"):
        open_data("imagefoldr:/tmp")


def test_a_bare_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is a folder: write imagefolder:{tmp_path}"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("source", ["imagefolder", "imagefolder:", "parquet", "cifar10:"])
def test_a_source_without_its_place(source: str) -> None:
    with pytest.raises(UserError, match=r"needs (a folder|files): write \w+:(DIR|FILES)"):
        open_data(source)


@pytest.mark.parametrize(("option", "value"), [("image_size", 0), ("limit", 0), ("limit", -5), ("seed", -1)])
def test_options_out_of_range(option: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"{option} must be at least \d, got {value}"):
        open_data("fashion", **{option: value})


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, latentlab.data as d; d.data_sources(); print([m for m in ('torch', 'pyarrow') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
