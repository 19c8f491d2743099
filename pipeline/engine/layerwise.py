"""LARS and LAMB: optimizers that bring each layer's update in proportion to the length of its weights.

A layer is one parameter tensor. Groups with `is_adapted` False (vectors: norms' parameters, biases) take plain steps,
as in both papers' own code: the length of a bias that begins at zero says nothing about its proper rate.
All tensors of a group are walked together (`torch._foreach_…`), and nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888, algorithm 1).

    With λ = η‖w‖ / (‖g‖ + β‖w‖):  v ← m·v + γ·λ·(g + β·w),  w ← w − v. Where ‖w‖ or ‖g‖ is 0, and in groups that are
    not adapted, λ is 1.

    Args:
        groups: parameter groups, each with `weight_decay` (β) and `is_adapted`.
        lr: γ.
        momentum: m.
        trust: η.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, trust: float) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "is_adapted": True}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the others, and their state, stay as they are."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            gradients = [p.grad for p in parameters]
            decay = group["weight_decay"]
            updates = torch._foreach_add(gradients, parameters, alpha=decay)
            if group["is_adapted"]:
                weight_norms, gradient_norms = _norms(parameters), _norms(gradients)
                ratios = group["trust"] * weight_norms / (gradient_norms + decay * weight_norms)
                is_usable = (weight_norms > 0) & (gradient_norms > 0)
                torch._foreach_mul_(updates, list(torch.where(is_usable, ratios, 1.0).unbind()))
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates, alpha=group["lr"])
            torch._foreach_sub_(parameters, buffers)


class LAMB(torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al. 2020, arXiv:1904.00962, algorithm 2, φ the identity).

    m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  r = m̂/(√v̂ + ε),  u = r + λw,  w ← w − γ·‖w‖/‖u‖·u, where m̂ and v̂ are
    m and v over 1 − βᵗ. Where ‖w‖ or ‖u‖ is 0, and in groups that are not adapted, the ratio is 1.

    Args:
        groups: parameter groups, each with `weight_decay` (λ) and `is_adapted`.
        lr: γ.
        betas: β₁ and β₂.
        eps: ε.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = 1e-6
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "is_adapted": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the others, and their state, stay as they are."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    # on the host, as torch keeps it: its powers are formed there
                    self.state[p] |= {
                        "step": torch.zeros((), dtype=torch.float32),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            first, second = group["betas"]
            gradients = [p.grad for p in parameters]
            states = [self.state[p] for p in parameters]
            steps = [state["step"].add_(1).item() for state in states]
            means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
            torch._foreach_lerp_(means, gradients, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
            denominators = torch._foreach_div(squares, [1 - second**step for step in steps])
            torch._foreach_sqrt_(denominators)
            torch._foreach_add_(denominators, group["eps"])
            updates = torch._foreach_div(means, [1 - first**step for step in steps])
            torch._foreach_div_(updates, denominators)
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            if group["is_adapted"]:
                weight_norms, update_norms = _norms(parameters), _norms(updates)
                is_usable = (weight_norms > 0) & (update_norms > 0)
                ratios = torch.where(is_usable, weight_norms / update_norms, 1.0)
                torch._foreach_mul_(updates, list(ratios.unbind()))
            torch._foreach_sub_(parameters, torch._foreach_mul(updates, group["lr"]))


def _norms(tensors: Any) -> Tensor:
    """L2 norm of each tensor: [tensors]."""
    return torch.stack(torch._foreach_norm(tensors))
