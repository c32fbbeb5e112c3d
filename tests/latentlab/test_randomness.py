"""Random numbers depend on seed, stream and step only."""

import torch

from latentlab.randomness import batch_indices, generator


def test_streams_and_steps_are_independent_of_each_other() -> None:
    draws = {key: torch.rand(4, generator=generator(0, *key)) for key in (("a", 1), ("a", 2), ("b", 1))}
    again = torch.rand(4, generator=generator(0, "a", 1))
    assert torch.equal(draws["a", 1], again)
    assert len({tuple(v.tolist()) for v in draws.values()}) == 3
    assert not torch.equal(torch.rand(4, generator=generator(1, "a", 1)), again)


def test_every_epoch_visits_every_image_once() -> None:
    n, batch = 10, 4
    drawn = torch.cat([batch_indices(n, batch, step, seed=3) for step in range(15)])
    assert len(drawn) == 60
    for epoch in range(6):
        assert sorted(drawn[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    assert drawn[:n].tolist() != drawn[n : 2 * n].tolist()


def test_a_batch_larger_than_the_data_runs_over_several_epochs() -> None:
    drawn = batch_indices(3, 7, 1, seed=0)
    assert len(drawn) == 7 and set(drawn.tolist()) == {0, 1, 2}
