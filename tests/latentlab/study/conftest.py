"""What tests of studies share."""

import pytest


@pytest.fixture(scope="module")
def home(own_cache: None) -> None:
    """A cache of the module's own."""
