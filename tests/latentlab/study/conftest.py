"""What tests of studies share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(tmp_path_factory.mktemp("home")))
        yield
