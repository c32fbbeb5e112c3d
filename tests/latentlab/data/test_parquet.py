"""Parquet files as the Hugging Face hub writes them: random access over row groups, labels, names and damage."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from latentlab.data import open_data
from latentlab.data import parquet as module
from latentlab.errors import UserError

CIFAR = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


def png(value: int) -> bytes:
    """An 8x8 image of one grey value."""
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    struct: bool = True,
    names: Sequence[str] | None = None,
    rows: int = 3,
    columns: tuple[str, str] = ("image", "label"),
) -> Path:
    """Write encoded images (and labels) with ``rows`` rows in a row group."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    values = [{"bytes": image, "path": None} for image in images] if struct else images
    table = pa.table({columns[0]: pa.array(values, kind)})
    if labels is not None:
        table = table.append_column(columns[1], pa.array(labels))
    if names is not None:
        features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def open_parquet(text: str | Path, **options: Any):
    return open_data(f"parquet:{text}", **{"image_size": 8, **options})


@pytest.fixture
def two(tmp_path: Path) -> str:
    """Ten images whose grey value is ten times their row, in files of 7 and 3 rows."""
    write(tmp_path / "p 0.parquet", [png(10 * i) for i in range(7)], [0, 1, 2, 0, 1, 2, 0], names="abc")
    write(tmp_path / "p 1.parquet", [png(10 * i) for i in range(7, 10)], [1, 2, 0], names="abc")
    return f"{tmp_path}/p *.parquet"


def test_rows_labels_and_names(two: str) -> None:
    data = open_parquet(two)
    assert (data.n, data.image_size, data.class_names, data.has_masks) == (10, 8, ("a", "b", "c"), False)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert values(data.images(np.arange(10))) == [10 * i for i in range(10)]


@pytest.mark.parametrize("order", [[9, 0, 5, 5, 2], [3, 2, 1, 0], [6, 7]])
def test_random_access(two: str, order: list[int]) -> None:
    assert values(open_parquet(two).images(np.array(order))) == [10 * i for i in order]


def test_batches_and_subsets(two: str) -> None:
    data = open_parquet(two)
    assert [v for _, images in data.batches(4) for v in values(images)] == [10 * i for i in range(10)]
    part = open_parquet(two, limit=6, seed=2)
    assert np.bincount(part.labels).tolist() == [2, 2, 2]
    rows = np.array(values(part.images(np.arange(6)))) // 10
    assert data.labels[rows].tolist() == part.labels.tolist()


def test_reading_in_order_reads_each_row_group_once(two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = module._read_images
    monkeypatch.setattr(
        module, "_read_images", lambda file, group: read.append((file.path, group)) or original(file, group)
    )
    for _ in open_parquet(two).batches(2):
        pass
    assert len(read) == len(set(read)) == 4


def test_a_list_keeps_its_order(two: str, tmp_path: Path) -> None:
    data = open_parquet(f"{tmp_path}/p 1.parquet, {tmp_path}/p 0.parquet")
    assert values(data.images(np.arange(4))) == [70, 80, 90, 0]


def test_plain_binary_column_and_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [png(1), png(2)], [5, 6], struct=False, columns=("img", "fine_label"))
    data = open_parquet(path)
    assert (data.labels.tolist(), data.class_names) == ([5, 6], None)
    assert values(data.images(np.array([1]))) == [2]
    assert open_data(f"parquet:{path}").image_size == 256


@pytest.mark.parametrize("labels", [None, [-1, -1]])
def test_unlabelled(tmp_path: Path, labels: list[int] | None) -> None:
    data = open_parquet(write(tmp_path / "a.parquet", [png(1), png(2)], labels))
    assert (data.n, data.labels, data.class_names) == (2, None, None)


def test_a_broken_image_is_named_by_file_and_row(tmp_path: Path) -> None:
    good = png(40)
    write(tmp_path / "a.parquet", [good] * 5, [0] * 5)
    write(tmp_path / "b.parquet", [good, good, good, good, good[:40], None], [0, 1, 2, 3, 4, 5])
    data = open_parquet(f"{tmp_path}/*.parquet")
    with pytest.raises(UserError, match=r"b\.parquet row 4 cannot be read as an image \(.*--skip-bad"):
        data.images(np.array([9]))
    with pytest.raises(UserError, match=r"b\.parquet row 5 cannot be read as an image"):
        data.images(np.array([10]))
    kept = open_parquet(f"{tmp_path}/*.parquet", skip_bad=True)
    assert kept.skipped == (f"{tmp_path}/b.parquet row 4", f"{tmp_path}/b.parquet row 5")
    assert kept.labels.tolist() == [0] * 5 + [0, 1, 2, 3]
    assert kept.fingerprint != data.fingerprint
    assert values(kept.images(np.arange(9))) == [40] * 9


def test_fingerprint_follows_content_and_preparation(two: str, tmp_path: Path) -> None:
    names = {open_parquet(two).fingerprint}
    for options in ({"image_size": 9}, {"limit": 5}, {"limit": 6}, {"limit": 6, "seed": 1}):
        names.add(open_parquet(two, **options).fingerprint)
    names.add(open_parquet(f"{tmp_path}/p 0.parquet").fingerprint)
    write(tmp_path / "p 1.parquet", [png(10 * i) for i in range(7, 10)], [1, 2, 1], names="abc")
    names.add(open_parquet(two).fingerprint)
    assert len(names) == 7
    assert open_parquet(two).fingerprint in names


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no parquet file matches .*\*\.parquet"):
        open_parquet(f"{tmp_path}/*.parquet")
    with pytest.raises(UserError, match="names no parquet file"):
        open_parquet(",")
    with pytest.raises(UserError, match=r"is a folder: write 'parquet:.*/\*\.parquet'"):
        open_parquet(tmp_path)
    path = tmp_path / "a.parquet"
    path.write_text("PAR1 but not really PAR1")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as a parquet file"):
        open_parquet(path)
    whole = write(path, [png(1)] * 9, [0] * 9).read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as a parquet file"):
        open_parquet(path)
    write(path, [])
    with pytest.raises(UserError, match="has no rows"):
        open_parquet(path)


def test_damage_inside_a_row_group_is_reported_when_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [png(i) for i in range(9)], [0] * 9)
    data = open_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56  # the first page header
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 cannot be read"):
        data.images(np.array([0]))


def test_wrong_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [png(1)], [0], columns=("picture", "label"))
    with pytest.raises(UserError, match="has no column image or img: it has picture, label"):
        open_parquet(path)
    pq.write_table(pa.table({"image": [1, 2]}), path)
    with pytest.raises(UserError, match=r"column image must hold encoded images, .* not int64"):
        open_parquet(path)
    for labels, problem in [
        (["cat", "dog"], "label column has type string"),
        ([0, None], "label column has 1 missing values"),
        ([0, -1], "row 1: label -1 is outside"),
        ([0, 3], "row 1: label 3 is outside"),
    ]:
        write(path, [png(1)] * 2, labels, names="abc")
        with pytest.raises(UserError, match=problem):
            open_parquet(path)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [png(1)], [0], names="ab")
    write(tmp_path / "b.parquet", [png(1)], [0], names="xy")
    write(tmp_path / "c.parquet", [png(1)])
    for other in "bc":
        with pytest.raises(UserError, match=r"a\.parquet and .*\.parquet differ in labels or class names"):
            open_parquet(f"{tmp_path}/a.parquet,{tmp_path}/{other}.parquet")


def test_no_masks(two: str) -> None:
    with pytest.raises(UserError, match="takes no mask folder: only imagefolder"):
        open_parquet(two, masks="somewhere")


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs ../shared/data/cifar10 beside the repository")
def test_real_file() -> None:
    path = CIFAR / "test-00000-of-00001.parquet"
    data = open_parquet(path, image_size=32)
    assert (data.n, sorted(set(data.labels))) == (10_000, list(range(10)))
    table = pq.read_table(path)
    for row in (0, 4999, 5000, 9999):
        record = table.slice(row, 1).to_pylist()[0]
        expected = np.asarray(Image.open(io.BytesIO(record["img"]["bytes"])).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(data.images(np.array([row]))[0].numpy(), expected)
        assert data.labels[row] == record["label"]
