"""Reading a measurement's details: fresh arrays, lists back from JSON, and damaged tables."""

import numpy as np
import pytest

from figures.columns import column, columns
from latentlab.errors import UserError


def test_none_from_json_is_nan() -> None:
    np.testing.assert_array_equal(column({"bic": [1, None, 3]}, "bic"), [1, np.nan, 3])


@pytest.mark.parametrize(
    ("details", "complaint"),
    [
        ({"curve": [1]}, "needs 't' .* which has curve"),
        ({"t": None}, "needs 't'"),
        ({"t": ["a"]}, "'t' .* not a table of numbers"),
        ({"t": [[1], [1, 2]]}, "'t' .* not a table of numbers"),
        ({"t": [[1.0]]}, "must have 1 axes, got shape"),
        ({"t": []}, "got shape"),
    ],
)
def test_damaged_column_is_named(details: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        column(details, "t")


def test_columns_of_different_length_are_named() -> None:
    with pytest.raises(UserError, match="same length: t 2, curve 3"):
        columns({"t": [0, 1], "curve": [1, 2, 3]}, "t", "curve")
