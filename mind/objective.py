"""What MIND is trained on: cross-entropy of the token plus the squared error of its soft top-k embedding (eq. 4), in chunks.

The logits of a batch, [b*l,v], are by far the largest tensor of a plain training step. Here they exist for one chunk of tokens
at a time: the loss of a chunk and its gradients are taken together, in place, so that nothing is kept and nothing is computed
twice. Shapes: m tokens of all images, h hidden, v vocabulary, d embedding width, k tokens kept.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mind.float64 import has_float64
from mind.geometry import Norm, aggregate, project
from mind.network import Mind


class SoftTopK(NamedTuple):
    """The squared-error term of the loss."""

    weight: float = 1.0
    """lambda of eq. 4; 0 leaves the term out."""
    k: int = 100
    norm: Norm = "full_unit"
    size: int = 4
    """g, of a sub-vector."""
    stop_gradient: bool = False
    """Whether the target embedding is a constant."""


class _Error(NamedTuple):
    """Squared error per coordinate, summed over the tokens of a chunk, and its gradients."""

    total: Tensor
    by_values: Tensor
    by_rows: Tensor
    by_targets: Tensor


def chunked_loss(
    features: Tensor, head: nn.Linear, vectors: Tensor, targets: Tensor, soft: SoftTopK, chunk: int, low: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, cross-entropy, squared error per coordinate), means over tokens; only the loss has a gradient.

    Args:
        features: inputs of the last linear layer, [m,h].
        head: that layer, h to v.
        vectors: embeddings of all tokens, [v,d].
        targets: token ids [m].
        soft: the squared error.
        chunk: tokens whose logits exist at a time.
        low: take the matrix products in bfloat16.
    """
    loss: tuple[Tensor, Tensor, Tensor] = _ChunkedLoss.apply(
        features, head.weight, head.bias, vectors, targets, soft, chunk, low
    )
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """`chunked_loss` with its gradients taken during the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, vectors: Tensor, targets: Tensor,
        soft: SoftTopK, chunk: int, low: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Go through the tokens once."""
        inputs = (features, weight, bias, vectors)
        wanted = any(ctx.needs_input_grad)
        grads = _Gradients(*(torch.zeros_like(p, dtype=torch.float32) for p in inputs)) if wanted else None
        dtype = torch.bfloat16 if low else weight.dtype
        x, w = features.to(dtype), weight.to(dtype)
        exact = torch.float64 if has_float64(features.device) else torch.float32
        sums = torch.zeros(2, dtype=exact, device=features.device)
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            logits = functional.linear(x[part], w).float().add_(bias)
            error, kept = _soft_error(logits, vectors, targets[part], soft, grads is not None)
            cross_entropy = _cross_entropy_(logits, targets[part], grads is not None)
            sums += torch.stack([cross_entropy, error.total]).to(sums)
            if grads is not None:
                grads.add(part, x[part], w, logits, targets[part], kept, error, soft.weight)
        means = (sums / len(x)).float()
        if grads is not None:
            ctx.grads = [g.div_(len(x)).to(p.dtype) for g, p in zip(grads, inputs, strict=True)]
        cross_entropy, squared = means[0].clone(), means[1].clone()
        ctx.mark_non_differentiable(cross_entropy, squared)
        return cross_entropy + soft.weight * squared, cross_entropy, squared

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Scale the gradients that the forward pass left."""
        grads, ctx.grads = ctx.grads, None
        return (*(g.mul_(upstream[0]) for g in grads), None, None, None, None)


class _Gradients(NamedTuple):
    """Sums of the gradients over the tokens so far, float32."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    vectors: Tensor

    def add(
        self,
        part: slice,
        x: Tensor,
        w: Tensor,
        logits: Tensor,
        targets: Tensor,
        kept: Tensor,
        error: _Error,
        scale: float,
    ) -> None:
        """Add those of one chunk; ``logits`` holds softmax - onehot and takes up the gradient of the squared error."""
        if scale:
            logits.scatter_add_(1, kept, scale * error.by_values)
            self.vectors.index_add_(0, kept.flatten(), error.by_rows.flatten(0, 1), alpha=scale)
            self.vectors.index_add_(0, targets, error.by_targets, alpha=scale)
        self.bias.add_(logits.sum(0))
        low = logits.to(w.dtype)
        self.features[part] = low @ w
        self.weight.add_(low.T @ x)


def _cross_entropy_(logits: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """Return the cross-entropy [] summed over the rows of ``logits`` [m,v], which become softmax - onehot."""
    picked = logits.gather(1, targets[:, None])
    most = logits.amax(1, keepdim=True)
    total = logits.sub_(most).exp_().sum(1, keepdim=True)
    if gradient:
        logits.div_(total)
        logits.scatter_add_(1, targets[:, None], -torch.ones_like(picked))
    return (total.log() + most - picked).sum()


def _soft_error(
    logits: Tensor, vectors: Tensor, targets: Tensor, soft: SoftTopK, gradient: bool
) -> tuple[_Error, Tensor]:
    """Return the squared error of one chunk and which tokens [m,k] took part; nothing is computed for weight 0."""
    if not soft.weight:
        nothing = logits.new_zeros(())
        return _Error(nothing, nothing, nothing, nothing), targets
    values, kept = logits.topk(min(soft.k, logits.shape[1]), dim=1, sorted=False)
    wanted = [values, vectors[kept], vectors[targets]]
    with torch.enable_grad():
        values, rows, goal = (tensor.detach().requires_grad_(gradient) for tensor in wanted)
        estimate = project(aggregate(values, rows), soft.norm, soft.size)
        total = (estimate - (goal.detach() if soft.stop_gradient else goal)).square().mean(1).sum()
    if not gradient:
        return _Error(total, values, rows, goal), kept
    found = torch.autograd.grad(total, [values, rows, goal], allow_unused=True, materialize_grads=True)
    return _Error(total.detach(), *found), kept


class MindObjective(nn.Module):
    """The loss of a model on noised tokens, as one module, so that data-parallel wrappers see a single forward pass."""

    def __init__(self, model: Mind, soft: SoftTopK, chunk: int = 4096) -> None:
        """Wrap ``model``; ``soft`` is the squared error, ``chunk`` the tokens whose logits exist at a time."""
        super().__init__()
        self.model, self.soft, self.chunk = model, soft, chunk

    def forward(self, indices: Tensor, labels: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Return ``loss`` (with gradient), ``ce`` and, unless its weight is 0, ``mse``: means over images and tokens.

        Args:
            indices: token ids [b,l].
            labels: class ids [b], `MindConfig.null_class` where the class is dropped.
            t: times [b], 1 is data.
            eps: noise [b,l,d] ~ N(0,I).
        """
        model = self.model
        vectors = model.table.vectors()
        x = model.process.diffuse(functional.embedding(indices, vectors), eps, t)
        hidden, cond = model(x, t, labels)
        features = model.head.features(hidden, cond).flatten(0, 1)
        low = model.precision == "autocast"
        loss, cross_entropy, squared = chunked_loss(
            features, model.head.linear, vectors, indices.flatten(), self.soft, self.chunk, low
        )
        terms = {"loss": loss, "ce": cross_entropy}
        return {**terms, "mse": squared} if self.soft.weight else terms
