"""The head's optimizer: dense for what every step trains whole, row by row for what it trains in part.

A row that a step does not train does not move at all: no decay, no momentum left over from earlier steps. That is what
Partial FC's sampling means here; a dense optimizer fed with zeros would let all other rows drift and shrink.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.optim import AdamConfig, AdamWConfig, HeadOptimizerConfig, SGDConfig
from pipeline.engine import optim
from pipeline.model.gradient_memory import discard_gradient
from pipeline.model.head import ActiveRows, Head

ADAM_EPS = 1e-8
_ROWS_AT_ONCE = 1024


class HeadOptimizer:
    """Owner of a head's optimizer state. All methods are called by all ranks; `gradient_norm` is collective.

    The state is laid out at construction: a checkpoint holds that of parameters which no step has trained yet, too.
    """

    def __init__(self, config: HeadOptimizerConfig, head: Head) -> None:
        self.head = head
        self._config = config
        row_sparse = head.row_sparse()
        self._dense = {name: p for name, p in head.named_parameters() if name not in row_sparse and p.requires_grad}
        self._optimizer = optim.build_optimizer(config, self._dense) if self._dense else None
        if self._optimizer is not None:
            optim.prime_optimizer(self._optimizer)
        self._rows = {name: _row_optimizer(config, head.get_parameter(name)) for name in sorted(row_sparse)}
        sharded = head.sharded_tensors()
        self._sharded = [p for name, p in self._dense.items() if name in sharded]
        self._replicated = [p for name, p in self._dense.items() if name not in sharded]

    def gradient_norm(self) -> Tensor:
        """Average the replicated parameters' gradients over ranks; give the L2 norm of the whole gradient. Collective.

        Returns:
            A scalar float32, the same on all ranks.
        """
        for parameter in self._replicated:
            if parameter.grad is not None:
                dist.all_reduce_sum(parameter.grad).div_(dist.world_size())
        of_sharded = [p.grad for p in self._sharded if p.grad is not None]
        of_rows = [active.gradient() for active in self.head.active_rows().values()]
        sharded = optim.norm_of([*of_sharded, *(g for g in of_rows if g is not None)], sharded=True)
        replicated = optim.norm_of([p.grad for p in self._replicated if p.grad is not None], sharded=False)
        return torch.hypot(sharded, replicated.to(sharded.device))

    def step(self, lr: float, norm: Tensor, max_norm: float | None) -> None:
        """Clip, update, clear the gradients."""
        active = self.head.active_rows()
        leaves = {id(p): p for p in [*self._dense.values(), *(rows.leaf for rows in active.values())]}
        optim.scale_gradients(leaves.values(), norm, max_norm)
        if self._optimizer is not None:
            optim.set_lr(self._optimizer, lr)
            self._optimizer.step()
        for name, rows in active.items():
            self._rows[name].step(rows, lr)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for parameter in self._dense.values():
            discard_gradient(parameter)
        for name, rows in self.head.active_rows().items():
            if rows.leaf is self.head.get_parameter(name):
                discard_gradient(rows.leaf)
            else:
                rows.leaf.grad = None  # of a copy that the next step makes anew

    def tensors(self) -> dict[str, Tensor]:
        """The state as live tensors under `parameter-name/slot`; those with dimensions are cut as their parameter."""
        tensors = optim.optimizer_tensors(self._optimizer, self._dense) if self._optimizer is not None else {}
        for name, optimizer in self._rows.items():
            tensors |= {f"{name}/{slot}": value for slot, value in optimizer.state.items()}
        return tensors


class _RowSGD:
    """SGD with momentum on some rows, as `torch.optim.SGD` does it on all."""

    def __init__(self, config: SGDConfig, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._momentum = config.momentum
        self._decay = config.weight_decay if parameter.ndim > 1 else 0.0
        self.state = {"momentum_buffer": torch.zeros_like(parameter.detach())} if config.momentum else {}

    @torch.no_grad()
    def step(self, active: ActiveRows, lr: float) -> None:
        for rows, update in _chunks(active):
            values = self._parameter.index_select(0, rows)
            if self._decay:
                update.add_(values, alpha=self._decay)
            if self._momentum:
                buffer = self.state["momentum_buffer"]
                update = buffer.index_select(0, rows).mul_(self._momentum).add_(update)
                buffer.index_copy_(0, rows, update)
            self._parameter.index_copy_(0, rows, values.add_(update, alpha=-lr))


class _RowAdam:
    """Adam or AdamW on some rows. Each row counts its own updates: its first one is corrected as a first one."""

    def __init__(self, config: AdamConfig | AdamWConfig, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._betas = config.betas
        self._is_decoupled = isinstance(config, AdamWConfig)
        self._decay = config.weight_decay if parameter.ndim > 1 else 0.0
        self.state = {
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
            "row_steps": torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device),
        }

    @torch.no_grad()
    def step(self, active: ActiveRows, lr: float) -> None:
        first, second = self._betas
        for rows, gradient in _chunks(active):
            values = self._parameter.index_select(0, rows)
            if self._decay and not self._is_decoupled:
                gradient.add_(values, alpha=self._decay)
            steps, mean, square = (
                self.state[slot].index_select(0, rows) for slot in ("row_steps", "exp_avg", "exp_avg_sq")
            )
            steps.add_(1)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            for slot, value in (("row_steps", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
                self.state[slot].index_copy_(0, rows, value)
            # in float32, 1 − 0.999 would have lost its digits
            per_row = steps.double().view(-1, *(1,) * (gradient.ndim - 1))
            denominator = square.div_((1 - second**per_row).to(square.dtype)).sqrt_().add_(ADAM_EPS)
            update = mean.div_((1 - first**per_row).to(mean.dtype)).div_(denominator)
            if self._is_decoupled:
                values.mul_(1 - lr * self._decay)
            self._parameter.index_copy_(0, rows, values.add_(update, alpha=-lr))


def _chunks(active: ActiveRows) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their gradients, a few at a time: what is gathered of them stays in the cache."""
    gradient = active.gradient()
    if gradient is not None:
        yield from zip(active.rows.split(_ROWS_AT_ONCE), gradient.split(_ROWS_AT_ONCE), strict=True)


def _row_optimizer(config: HeadOptimizerConfig, parameter: nn.Parameter) -> _RowSGD | _RowAdam:
    return _RowSGD(config, parameter) if isinstance(config, SGDConfig) else _RowAdam(config, parameter)
