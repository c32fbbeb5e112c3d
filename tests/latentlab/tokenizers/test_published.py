import pytest
import torch
from torch import Tensor, nn

from latentlab import UserError
from latentlab.tokenizers.published import load_published, rename_ema


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
    names = {"a.b": torch.tensor(1.0), "ab_c": torch.tensor(2.0)}
    averaged = {"model_ema.ab": torch.tensor(3.0), "model_ema.ab_c": torch.tensor(4.0)}
    assert rename_ema(averaged, names) == {"a.b": torch.tensor(3.0), "ab_c": torch.tensor(4.0)}
    with pytest.raises(RuntimeError, match=r"'a\.bc' and 'ab\.c' have the same name"):
        rename_ema({}, ["ab.c", "a.bc"])


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
    with pytest.raises(UserError, match=r"1 missing \(encoder\.weight\)"):
        loaded(content, ema=True)
