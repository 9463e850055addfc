"""Merge methods in float64, written from their papers: whole tensors, sorts, no thought of speed.

Each function returns the merged tensor and where it is in doubt: elements that lie within one fp32
step of a threshold, of an even vote or of another rank, and so may rightly come out otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

STEP = 2.0**-22  # two fp32 steps: what is compared was rounded itself
Result = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """What a formula is applied to.

    Attributes:
        tensors, base: float64.
        random: the number in (0, 1) of each element, by model.
        parameters: of the method; one value for each model where the method has that.
    """

    tensors: Sequence[Tensor]
    base: Tensor
    random: Callable[[int], Tensor]
    parameters: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.parameters[name]

    @property
    def deltas(self) -> list[Tensor]:
        return [tensor - self.base for tensor in self.tensors]

    @property
    def sure(self) -> Tensor:
        """No element in doubt."""
        return torch.zeros_like(self.base, dtype=torch.bool)


def near(values: Tensor, limit: float | Tensor) -> Tensor:
    """Where values nearly equal a limit, but do not quite."""
    distance = (values - limit).abs()
    return (distance > 0) & (distance <= STEP * torch.as_tensor(limit).abs())


def kth_largest(values: Tensor, rank: int) -> float:
    return float(values.reshape(-1).sort(descending=True).values[rank - 1])


def whole(weights: Sequence[float]) -> tuple[list[int], int]:
    """Decimal weights as integers over one denominator.

    Half of a bf16 step is common in weighted means; 0.6 and 0.3 as float64 would miss it by 10⁻¹⁷.
    """
    fractions = [Fraction(repr(weight)) for weight in weights]
    denominator = math.lcm(*(f.denominator for f in fractions))
    return [int(f * denominator) for f in fractions], denominator


def mixed(call: Call, deltas: Sequence[Tensor], doubt: Tensor) -> Result:
    """Task arithmetic with sparse task vectors."""
    weights, denominator = whole(call.weight)
    total = sum(w * d for w, d in zip(weights, deltas, strict=True))
    divisor = sum(weights) if call.normalize else denominator
    (factor,), unit = whole([call.scaling_factor])
    return call.base + factor * total / (divisor * unit), doubt


def elected(call: Call, deltas: Sequence[Tensor], doubt: Tensor) -> Result:
    """TIES after trimming: elect the sign of each element, average what has it."""
    weights, denominator = whole(call.weight)
    weighted = torch.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    votes = weighted if call.majority_sign_method == "total" else weighted.sign()
    balance, size = votes.sum(0), votes.abs().sum(0)
    sign = torch.where(balance >= 0, 1.0, -1.0)
    agrees = weighted.sign() == sign
    shares = torch.tensor(weights).double().reshape(-1, *[1] * call.base.ndim)
    divisor = (agrees * shares).sum(0)
    divisor[divisor == 0] = 1
    total = (weighted * agrees).sum(0)
    merged = total / (divisor if call.normalize else denominator)
    if call.majority_sign_method == "total":  # the others are whole numbers
        doubt = doubt | ((balance.abs() <= STEP * size) & (size > 0))
    return call.base + call.scaling_factor * merged, doubt


def task_arithmetic(call: Call) -> Result:
    """Ilharco et al., arXiv:2212.04089."""
    return mixed(call, call.deltas, call.sure)


def expo(call: Call) -> Result:
    """Zheng et al., arXiv:2404.16792."""
    tuned = call.tensors[0]
    return tuned + call.alpha * (tuned - call.base), call.sure


def magmax(call: Call) -> Result:
    """Marczak et al., arXiv:2407.06322."""
    deltas = torch.stack(call.deltas)
    largest = deltas.abs().max(0).values
    merged = torch.where((deltas == largest).any(0), largest, -largest)
    return call.base + call.scaling_factor * merged, call.sure


def _rescaled(call: Call, sparse: Tensor, dense: Tensor) -> Tensor:
    return sparse * (dense.abs().sum() / sparse.abs().sum()) if call.rescale else sparse


def trimmed(call: Call) -> tuple[list[Tensor], Tensor]:
    deltas, doubt = [], call.sure
    for delta, keep in zip(call.deltas, call.density, strict=True):
        limit = kth_largest(delta.abs(), max(1, int(keep * delta.numel())))
        deltas.append(_rescaled(call, delta * (delta.abs() >= limit), delta))
        doubt = doubt | near(delta.abs(), limit)
    return deltas, doubt


def ties(call: Call) -> Result:
    """Yadav et al., arXiv:2306.01708; at even votes the positive sign."""
    return elected(call, *trimmed(call))


def without_outliers(call: Call) -> tuple[list[Tensor], Tensor]:
    deltas, doubt = [], call.sure
    for delta, keep, gamma in zip(call.deltas, call.density, call.gamma, strict=True):
        size = delta.numel()
        kept = int(keep * size)
        above = min(int(gamma * size), size - kept)
        high, low = (kth_largest(delta.abs(), rank) for rank in (above + 1, above + kept))
        stays = (delta.abs() >= low) & (delta.abs() <= high)
        deltas.append(_rescaled(call, delta * stays, delta))
        doubt = doubt | near(delta.abs(), low) | near(delta.abs(), high)
    return deltas, doubt


def breadcrumbs(call: Call) -> Result:
    """Davari and Belilovsky, arXiv:2312.06795."""
    return mixed(call, *without_outliers(call))


def breadcrumbs_ties(call: Call) -> Result:
    return elected(call, *without_outliers(call))


def dropped(call: Call) -> tuple[list[Tensor], Tensor]:
    deltas = []
    for model, (delta, keep) in enumerate(zip(call.deltas, call.density, strict=True)):
        sparse = delta * (call.random(model) < keep)
        if call.rescale and call.rescale_by == "density":
            sparse = sparse / keep
        elif call.rescale:
            sparse = sparse * (delta.abs().sum() / sparse.abs().sum())
        deltas.append(sparse)
    return deltas, call.sure


def dare_linear(call: Call) -> Result:
    """Yu et al., arXiv:2311.03099."""
    return mixed(call, *dropped(call))


def dare_ties(call: Call) -> Result:
    return elected(call, *dropped(call))


def pruned(call: Call) -> tuple[list[Tensor], Tensor]:
    """MAGPRUNE: the probability to stay is linear in the rank of the magnitude within its row."""
    deltas, doubt = [], call.sure
    settings = zip(call.deltas, call.density, call.epsilon, strict=True)
    for model, (delta, keep, spread) in enumerate(settings):
        rows = delta.abs().reshape(-1, delta.shape[-1])
        ranks = rows.argsort(dim=1, stable=True).argsort(dim=1).double().view_as(delta)
        chance = keep - spread + 2 * spread * ranks / (delta.shape[-1] - 1)
        sparse = delta * (call.random(model) < chance)
        if call.rescale and call.rescale_by == "density":
            sparse = sparse / chance
        elif call.rescale:
            sparse = sparse * (delta.abs().sum() / sparse.abs().sum())
        deltas.append(sparse)
        # Equal in fp32, but not in float64: their ranks may be exchanged.
        doubt = doubt | (delta != delta.float()) | near(call.random(model), chance)
    return deltas, doubt


def della(call: Call) -> Result:
    """Deep et al., arXiv:2406.11617, with epsilon for half of the paper's."""
    return elected(call, *pruned(call))


def della_linear(call: Call) -> Result:
    return mixed(call, *pruned(call))


def sce(call: Call) -> Result:
    """Wan et al., arXiv:2408.07990: select, calculate, erase."""
    deltas, doubt = torch.stack(call.deltas), call.sure
    if call.select_topk < 1:
        variance = deltas.var(0, unbiased=False)
        variance[(deltas == deltas[0]).all(0)] = 0
        rank = int(int((variance > 0).sum()) * call.select_topk)
        limit = kth_largest(variance, rank) if rank else math.inf
        deltas = deltas * (variance >= limit)
        doubt = near(variance, limit) if rank else doubt
    squares = deltas.square().flatten(1).sum(1)
    weight = squares / squares.sum() if squares.sum() else torch.full_like(squares, 1 / len(deltas))
    balance, size = deltas.sum(0), deltas.abs().sum(0)
    agrees = deltas.sign() == torch.where(balance >= 0, 1.0, -1.0)
    shares = weight.reshape(-1, *[1] * call.base.ndim) * agrees
    merged = (deltas * shares).sum(0) / shares.sum(0).clamp(min=1e-300)
    return call.base + merged, doubt | ((balance.abs() <= STEP * size) & (size > 0))


def _regions(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    deltas = torch.stack(call.deltas)
    changed = deltas.abs() > call.epsilon
    return deltas * changed, changed, near(deltas.abs(), call.epsilon).any(0)


def ram(call: Call) -> Result:
    """Yuan et al., arXiv:2601.13572."""
    deltas, changed, doubt = _regions(call)
    return call.base + deltas.sum(0) / changed.sum(0).clamp(min=1), doubt


def ramplus_tl(call: Call) -> Result:
    deltas, changed, doubt = _regions(call)
    count = changed.sum(0)
    merged = torch.where(count > 1, deltas.sum(0) / count.clamp(min=1), 0.0)
    for delta, own in zip(deltas, changed, strict=True):
        unique, shared = int((own & (count == 1)).sum()), int((own & (count > 1)).sum())
        factor = 1 + call.r * min(shared / max(unique, 1), call.alpha)
        merged = merged + torch.where(count == 1, delta * factor, 0.0)
    return call.base + merged, doubt


def nearswap(call: Call) -> Result:
    """The base model, moved by at most t."""
    change = call.tensors[0] - call.base
    return call.base + change.clamp(-call.t, call.t), call.sure


def arcee_fusion(call: Call) -> Result:
    """|θ − θ₀| · KL(p ‖ p₀) by rows; outliers by Tukey's rule are taken."""
    tensor, base = call.tensors[0], call.base
    p, q = torch.softmax(tensor, -1) + 1e-8, torch.softmax(base, -1) + 1e-8
    importance = (tensor - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.reshape(-1).sort().values
    low, middle, high = (float(ordered[int(q * (len(ordered) - 1))]) for q in (0.25, 0.5, 0.75))
    limit = middle + 1.5 * (high - low)
    return base + (tensor - base) * (importance >= limit), near(importance, limit)


def passthrough(call: Call) -> Result:
    scale = call.scale[0]
    return call.tensors[0] * (1.0 if scale is None else scale), call.sure


FORMULAS: dict[str, Callable[[Call], Result]] = {
    formula.__name__: formula
    for formula in (
        task_arithmetic,
        expo,
        magmax,
        ties,
        breadcrumbs,
        breadcrumbs_ties,
        dare_linear,
        dare_ties,
        della,
        della_linear,
        sce,
        ram,
        ramplus_tl,
        nearswap,
        arcee_fusion,
        passthrough,
    )
}
