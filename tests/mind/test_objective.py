"""The chunked head equals the plain loss written with autograd, in value and every gradient, and never holds all logits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mind.config import MindConfig, sized
from mind.geometry import NORMS, Norm
from mind.network import Mind
from mind.objective import MindObjective, SoftTopK, chunked_loss

TOKENS, HIDDEN, VOCABULARY, WIDTH, SIZE = 53, 12, 41, 8, 2
TINY = MindConfig(
    vocab_size=48, embed_dim=8, subvector_size=2, hidden_size=16, num_heads=2, num_blocks=2, cond_dim=8, num_classes=3,
    tokens=6, mapper_width=16,
)  # fmt: skip


def on_spheres(table: Tensor, size: int) -> Tensor:
    """Return rows with every sub-vector at norm 1, one sub-vector at a time."""
    parts = table.split(size, dim=-1)
    return torch.cat([part / (part.pow(2).sum(-1, keepdim=True).sqrt() + 1e-6) for part in parts], dim=-1)


def plain_soft_topk(logits: Tensor, vectors: Tensor, k: int, norm: Norm, size: int) -> Tensor:
    """Equations 2 and 3, with a weight for every token of the vocabulary: zero outside the k largest."""
    smallest = logits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    weights = functional.softmax(logits.masked_fill(logits < smallest, -math.inf), dim=-1)
    mean = (weights / (weights.sum(-1, keepdim=True) + 1e-5)) @ vectors
    if norm == "subvector":
        return on_spheres(mean, size)
    if norm == "none":
        return mean
    length = mean.pow(2).sum(-1, keepdim=True).sqrt() + 1e-6
    return mean / length * (math.sqrt(mean.shape[-1] / size) if norm == "full_radius" else 1.0)


def plain_terms(logits: Tensor, vectors: Tensor, targets: Tensor, soft: SoftTopK) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and squared error of logits [m,v] that all exist at once."""
    goal = vectors[targets].detach() if soft.stop_gradient else vectors[targets]
    estimate = plain_soft_topk(logits, vectors, soft.k, soft.norm, soft.size)
    return functional.cross_entropy(logits, targets), (estimate - goal).pow(2).mean()


class Case:
    """Random features, head and table; the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.features = torch.randn(TOKENS, HIDDEN, requires_grad=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.table = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
        self.targets = torch.randint(VOCABULARY, (TOKENS,))

    def chunked(self, soft: SoftTopK, chunk: int, low: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        vectors = on_spheres(self.table, SIZE)
        return chunked_loss(self.features, self.head, vectors, self.targets, soft, chunk, low)

    def plain(self, soft: SoftTopK) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.head(self.features)
        cross_entropy, squared = plain_terms(logits, on_spheres(self.table, SIZE), self.targets, soft)
        return cross_entropy + soft.weight * squared, cross_entropy, squared

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.features, self.head.weight, self.head.bias, self.table]))


def assert_equal_to(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Check the largest difference against the largest value."""
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
def test_chunks_give_the_plain_loss_and_gradients(norm: Norm, stop: bool, chunk: int) -> None:
    case, soft = Case(), SoftTopK(weight=3.0, k=9, norm=norm, size=SIZE, stop_gradient=stop)
    found, wanted = case.chunked(soft, chunk), case.plain(soft)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_equal_to(mine, theirs)
    for mine, theirs in zip(case.gradients(found[0]), case.gradients(wanted[0]), strict=True):
        assert theirs.abs().max() > 0
        assert_equal_to(mine, theirs)


@pytest.mark.parametrize("k", [1, VOCABULARY, VOCABULARY + 50])
def test_every_number_of_kept_tokens_is_possible(k: int) -> None:
    case, soft = Case(1), SoftTopK(weight=1.0, k=k, norm="subvector", size=SIZE)
    found, wanted = case.chunked(soft, 10), case.plain(soft._replace(k=min(k, VOCABULARY)))
    for mine, theirs in zip(case.gradients(found[0]), case.gradients(wanted[0]), strict=True):
        assert_equal_to(mine, theirs)


def test_stopping_the_target_changes_only_the_gradient_of_the_table() -> None:
    case, soft = Case(2), SoftTopK(weight=1.0, k=5, size=SIZE)
    free, stopped = (case.gradients(case.chunked(soft._replace(stop_gradient=stop), 10)[0]) for stop in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(free[:3], stopped[:3], strict=True))
    assert (free[3] - stopped[3]).abs().max() > 1e-3


def test_only_the_loss_has_a_gradient_and_it_scales() -> None:
    case, soft = Case(), SoftTopK(k=5, size=SIZE)
    loss, cross_entropy, squared = case.chunked(soft, 10)
    assert loss.requires_grad and not cross_entropy.requires_grad and not squared.requires_grad
    single, triple = case.gradients(loss), case.gradients(3 * case.chunked(soft, 10)[0])
    for one, three in zip(single, triple, strict=True):
        torch.testing.assert_close(3 * one, three)
    with torch.no_grad():
        assert torch.equal(case.chunked(soft, 10)[0], loss)


def test_extreme_logits_stay_finite() -> None:
    case, soft = Case(), SoftTopK(k=5, size=SIZE)
    with torch.no_grad():
        case.head.weight.mul_(1e4)
    found, wanted = case.chunked(soft, 10), case.plain(soft)
    assert_equal_to(found[0], wanted[0])
    for mine, theirs in zip(case.gradients(found[0]), case.gradients(wanted[0]), strict=True):
        assert_equal_to(mine, theirs)


class Seen(TorchDispatchMode):
    """Notes every operator and the number of elements of the largest tensor any of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.names = 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def seen_in(case: Case, loss: Callable[[], tuple[Tensor, ...]]) -> Seen:
    with Seen() as seen:
        case.gradients(loss()[0])
    return seen


def test_all_logits_never_exist_at_once() -> None:
    case, chunk = Case(), 6
    soft = SoftTopK(k=4, size=SIZE)
    assert seen_in(case, lambda: case.plain(soft)).largest == TOKENS * VOCABULARY  # what is looked for can be seen
    in_chunks = chunk * VOCABULARY
    assert max(in_chunks, TOKENS * HIDDEN, VOCABULARY * HIDDEN) < TOKENS * VOCABULARY / 2
    assert seen_in(case, lambda: case.chunked(soft, chunk)).largest == max(in_chunks, TOKENS * HIDDEN)


def test_weight_zero_leaves_the_soft_topk_out() -> None:
    case, soft = Case(), SoftTopK(weight=0.0, k=5, size=SIZE)
    found, wanted = case.chunked(soft, 10), functional.cross_entropy(case.head(case.features), case.targets)
    assert_equal_to(found[0], wanted)
    assert torch.equal(found[0], found[1]) and found[2] == 0
    mine = case.gradients(found[0])
    theirs = torch.autograd.grad(wanted, [case.features, case.head.weight, case.head.bias])
    for a, b in zip(mine, theirs, strict=False):
        assert_equal_to(a, b)
    assert not mine[3].any()
    assert "topk" not in seen_in(case, lambda: case.chunked(soft, 10)).names
    assert "topk" in seen_in(case, lambda: case.chunked(soft._replace(weight=1.0), 10)).names


def test_bfloat16_products_stay_close() -> None:
    case, soft = Case(), SoftTopK(k=VOCABULARY, size=SIZE)
    exact, rounded = case.chunked(soft, 10), case.chunked(soft, 10, low=True)
    assert 0 < (exact[0] - rounded[0]).abs() < 2e-3 * exact[0]
    for mine, theirs in zip(case.gradients(rounded[0]), case.gradients(exact[0]), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 1e-2 * theirs.norm()  # a bfloat16 has 8 bits


def tiny_model(config: MindConfig = TINY, seed: int = 0) -> Mind:
    """Return a model none of whose branches is at its zero start."""
    torch.manual_seed(seed)
    model = Mind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def noised(config: MindConfig, n: int = 5) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    return {
        "indices": torch.randint(config.vocab_size, (n, config.tokens), generator=source),
        "labels": torch.randint(config.num_classes + 1, (n,), generator=source),
        "t": torch.rand(n, generator=source),
        "eps": torch.randn(n, config.tokens, config.embed_dim, generator=source),
    }


def plain_objective(model: Mind, soft: SoftTopK, indices: Tensor, labels: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Algorithm 1 of the paper, line by line."""
    config = model.config
    raw = model.table.embedding
    vectors = on_spheres(raw, config.subvector_size) if config.normalise else raw
    z = vectors[indices]
    x = config.signal_factor * t.sqrt()[:, None, None] * z + config.noise_factor * (1 - t).sqrt()[:, None, None] * eps
    logits = model.logits(x, t, labels).flatten(0, 1)
    cross_entropy, squared = plain_terms(logits, vectors, indices.flatten(), soft)
    return cross_entropy + soft.weight * squared


@pytest.mark.parametrize(("normalise", "norm"), [(True, "full_unit"), (True, "subvector"), (False, "none")])
def test_a_model_gets_the_gradients_of_the_plain_step(normalise: bool, norm: Norm) -> None:
    config = TINY.model_copy(update={"normalise": normalise})
    model, data = tiny_model(config), noised(config)
    soft = SoftTopK(weight=0.7, k=6, norm=norm, size=2)
    terms = MindObjective(model, soft, chunk=7)(**data)
    wanted = plain_objective(model, soft, **data)
    assert_equal_to(terms["loss"], wanted)
    trained = [p for p in model.parameters() if p.requires_grad]
    mine, theirs = (torch.autograd.grad(loss, trained) for loss in (terms["loss"], wanted))
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 0
        assert_equal_to(a, b)


def test_recomputed_blocks_change_nothing() -> None:
    model, data = tiny_model(), noised(TINY)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for model.recompute in ("nothing", "cheap", "blocks"):  # type: ignore[assignment]
        found.append(torch.autograd.grad(MindObjective(model, SoftTopK(size=2), 7)(**data)["loss"], trained))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_autocast_stays_close_and_leaves_float32_gradients() -> None:
    model, data = tiny_model(), noised(TINY, n=40)
    trained = [p for p in model.parameters() if p.requires_grad]
    objective = MindObjective(model, SoftTopK(k=TINY.vocab_size, size=2), 64)
    losses, gradients = [], []
    for precision in ("float32", "autocast"):
        model.set_precision(precision)  # type: ignore[arg-type]
        losses.append(objective(**data)["loss"])
        gradients.append(torch.autograd.grad(losses[-1], trained))
    assert 0 < (losses[0] - losses[1]).abs() < 5e-3 * losses[0]
    exact, rounded = (torch.cat([g.flatten() for g in grads]) for grads in gradients)
    assert rounded.dtype == torch.float32
    assert (exact - rounded).norm() < 3e-2 * exact.norm()


def test_the_first_loss_is_chance_plus_the_spread_of_the_head() -> None:
    """The head starts at U(-1/sqrt(h), 1/sqrt(h)) on unit-variance features: logits have variance about 1/3."""
    torch.manual_seed(0)
    config = sized("mind-fashion")
    data = noised(config, n=8)
    terms = MindObjective(Mind(config), SoftTopK(size=config.subvector_size))(**data)
    assert float(terms["ce"]) == pytest.approx(math.log(config.vocab_size) + 1 / 6, abs=0.05)
    assert float(terms["mse"]) >= 1 / config.embed_dim  # norm 1 against norm 2: at least 1 per token
    assert set(terms) == {"loss", "ce", "mse"}
    assert set(MindObjective(Mind(config), SoftTopK(weight=0.0))(**data)) == {"loss", "ce"}
