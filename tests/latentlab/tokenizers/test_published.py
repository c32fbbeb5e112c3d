from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentlab import UserError
from latentlab.tokenizers.published import ema_names, has_averages, load_published


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.conv_in = nn.Linear(3, 1)


def state(value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in Net().state_dict().items()}


def with_ema(raw: float, averaged: float) -> dict[str, Tensor]:
    ema = {"model_ema." + name.replace(".", ""): tensor for name, tensor in state(averaged).items()}
    return {**state(raw), **ema, "model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}


def loaded(content: dict[str, Tensor], ema: bool) -> set[float]:
    net = Net()
    load_published(net, content, ema=ema, source="file")
    return {parameter.unique().item() for parameter in net.parameters()}


def test_averaged_weights_when_there_are_some_and_they_are_wanted() -> None:
    assert loaded(with_ema(1, 2), ema=True) == {2}
    assert loaded(with_ema(1, 2), ema=False) == {1}
    assert loaded(state(1), ema=True) == {1}
    left_over = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    assert loaded({**state(1), **left_over}, ema=True) == {1}


def test_averaged_weights_go_to_their_own_parameter() -> None:
    assert ema_names(["a.b", "ab_c"]) == {"a.b": "model_ema.ab", "ab_c": "model_ema.ab_c"}
    with pytest.raises(RuntimeError, match=r"'a\.bc' and 'ab\.c' have the same name"):
        ema_names(["ab.c", "a.bc"])


def test_training_keys_are_dropped() -> None:
    extra = ("loss.logvar", "model_ema.lossdiscriminator", "foundation_model.model.cls_token", "linear_proj.weight")
    assert loaded({**with_ema(1, 2), **{key: torch.zeros(5) for key in extra}}, ema=True) == {2}


def test_half_precision_is_widened() -> None:
    net = Net()
    load_published(net, {name: tensor.half() for name, tensor in state(1.5).items()}, ema=True, source="file")
    assert net.encoder.weight.dtype == torch.float32 and net.encoder.weight.unique().item() == 1.5


def test_all_misfits_in_one_line_and_nothing_is_loaded() -> None:
    content = state(1)
    del content["encoder.bias"], content["conv_in.bias"]
    content |= {f"other.{i}": torch.zeros(1) for i in range(5)} | {"conv_in.weight": torch.zeros(1, 4)}
    net = Net()
    before = net.encoder.weight.clone()
    with pytest.raises(UserError) as caught:
        load_published(net, content, ema=True, source="a.ckpt")
    assert str(caught.value).startswith(
        "a.ckpt does not fit the architecture: 2 missing (encoder.bias, conv_in.bias); "
        "5 unexpected (other.0, other.1, other.2, other.3, other.4); "
        "1 of another shape (conv_in.weight is [1, 4] instead of [1, 3])."
    )
    assert torch.equal(net.encoder.weight, before)


def test_incomplete_averaged_weights_are_not_filled_up_with_raw_ones() -> None:
    content = with_ema(1, 2)
    del content["model_ema.encoderweight"]
    with pytest.raises(UserError, match=r"1 missing \(model_ema\.encoderweight\)"):
        loaded(content, ema=True)


def test_files_that_hold_averages_or_only_those() -> None:
    assert has_averages(with_ema(1, 2)) and not has_averages(state(1))
    assert has_averages({**state(1), "model_ema.decay": torch.tensor(0.9)})  # they were made the only ones


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    content = state(1)
    content["conv_in.bias"][0] = value
    with pytest.raises(UserError, match=r"file holds NaN or infinite weights \(conv_in\.bias\)"):
        loaded(content, ema=True)


def test_the_error_names_the_configuration_that_was_read(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(
        UserError, match=rf"fields of architecture that differ from {config} \(--architecture FIELD=VALUE\)$"
    ):
        load_published(Net(), {}, ema=True, source="file", config=config)
