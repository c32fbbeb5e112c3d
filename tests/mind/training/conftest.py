"""The configuration of a tiny run, the run itself, and a cache for both."""

from pathlib import Path

import pytest
import yaml

from mind.mind_recipe import train_mind as train
from mind.train_config import load_config

from .tiny_run import TINY, encoded_training_images


@pytest.fixture(scope="module", autouse=True)
def home(own_cache: None) -> None:
    """Runs of a module share a cache."""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture(scope="module")
def straight(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(load_config(config_file), out, device="cpu")
    return out


@pytest.fixture
def held_out(straight: Path) -> str:
    return encoded_training_images()
