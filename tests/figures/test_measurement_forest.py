import pytest

from figures import measurement_forest
from latentlab.errors import UserError
from latentlab.measurement import Measurement


def _measured(name: str, value: float, interval: tuple[float, float] | None, **changed) -> Measurement:
    fields = {"variant": "mean", "direction": "lower", "unit": f"{name} units", "n": 100} | changed
    return Measurement(name=name, value=value, interval=interval, **fields)


@pytest.fixture
def results() -> dict[str, dict[str, Measurement]]:
    return {
        "ae": {"viv": _measured("viv", 0.8, (0.7, 0.95)), "lnc": _measured("lnc", 0.5, None, direction="higher")},
        "kl": {"viv": _measured("viv", 0.6, (0.55, 0.65))},
    }


def test_one_panel_per_measurement_in_its_own_unit(results: dict) -> None:
    viv, lnc = measurement_forest.draw(results).axes
    assert [axes.get_title(loc="left") for axes in (viv, lnc)] == ["viv", "lnc"]
    assert [axes.get_xlabel() for axes in (viv, lnc)] == ["viv units", "lnc units"]
    assert [axes.texts[0].get_text() for axes in (viv, lnc)] == ["← easier", "easier →"]
    assert [label.get_text() for label in viv.get_yticklabels()] == ["ae", "kl"]
    assert viv.yaxis_inverted()  # the first tokenizer on top


def test_rows_are_intervals_and_values(results: dict) -> None:
    viv, lnc = measurement_forest.draw(results).axes
    drawn = [line.get_xydata().tolist() for line in viv.get_lines()]
    assert drawn == [[[0.7, 0], [0.95, 0]], [[0.8, 0]], [[0.55, 1], [0.65, 1]], [[0.6, 1]]]
    assert [line.get_xydata().tolist() for line in lnc.get_lines()] == [[[0.5, 0]]]  # no interval; kl was not measured


def test_variants_do_not_compare(results: dict) -> None:
    results["kl"]["viv"] = _measured("viv", 0.6, None, variant="sum")
    with pytest.raises(UserError, match=r"'viv' was measured in different variants.*mean; sum"):
        measurement_forest.draw(results)


def test_nothing_measured() -> None:
    with pytest.raises(UserError, match="at least one measurement"):
        measurement_forest.draw({"ae": {}})
