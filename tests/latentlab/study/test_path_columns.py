"""Which columns the paths of a generator give: of codes none that compares steps with the variance of continuous latents."""

import pytest

from latentlab.measurement import Estimate, Measurement
from latentlab.study.stages.generators import _path_columns


@pytest.mark.parametrize("discrete", [False, True])
def test_the_correlation_with_the_variance_is_of_continuous_latents(discrete: bool) -> None:
    names = ("efficiency", "mean length ratio", "correlation with irreducible variance")
    companions = {name: Estimate(0.5, (0.4, 0.6)) for name in names}
    paths = Measurement("straightness", "", 0.9, (0.8, 1.0), "higher", "", 8, companions=companions)
    columns = _path_columns(paths, discrete)
    assert ("step_variance_correlation" in columns) is not discrete
    assert columns["length_ratio"] == {"value": 0.5, "interval": [0.4, 0.6]}
