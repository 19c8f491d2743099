"""Ranks, the process group and the collectives that the rest of the project uses.

Everything here also works in a single process without a group, where each collective is the identity. All functions
but `rank`, `world_size`, `partition` and `num_collectives` are collective: every rank must call them, in the same
order. Their time counts as `Stage.COMMUNICATION`.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TypeVar, cast

import torch
import torch.distributed as c10d
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.meet import meet
from pipeline.progress import PROGRESS, Stage

T = TypeVar("T")


def rank() -> int:
    """This process's number in the group, 0 without one."""
    return c10d.get_rank() if c10d.is_initialized() else 0


def world_size() -> int:
    """Number of ranks in the group, 1 without one."""
    return c10d.get_world_size() if c10d.is_initialized() else 1


def initialise(device: str) -> torch.device:
    """Join the process group that torchrun's environment variables describe; without them there is a single process.

    Where the launcher has made the default group already, as Ray Train does, that is the one.

    Args:
        device: "cuda" (NCCL on the GPU that LOCAL_RANK names, gloo beside it for CPU tensors) or "cpu" (gloo).

    Returns:
        The device this rank computes on.

    Raises:
        UserError: "cuda" where this rank has no GPU.
    """
    chosen = torch.device(device)
    if chosen.type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                "device",
                f"no GPU for local rank {local_rank}, {torch.cuda.device_count()} visible",
                "one GPU a process",
                "lower --nproc-per-node, or set device=cpu",
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not c10d.is_initialized():
        store, own_rank, num_ranks = next(c10d.rendezvous("env://"))
        store = c10d.PrefixStore(meet(store, own_rank, num_ranks), store)
        options: dict[str, Any] = {"store": store, "rank": own_rank, "world_size": num_ranks}
        if chosen.type == "cuda":
            c10d.init_process_group("cpu:gloo,cuda:nccl", device_id=chosen, **options)
        else:
            c10d.init_process_group("gloo", **options)
    return chosen


def shutdown() -> None:
    """Leave the process group, all ranks together; safe without one.

    The barrier keeps the first to leave from tearing down connections that others still use. Called while an exception
    is on its way out, it does not wait: the other ranks may be in another collective and never come.
    """
    if not c10d.is_initialized():
        return
    if sys.exc_info()[0] is None:
        c10d.barrier()
    elif torch.cuda.is_initialized():
        return  # NCCL would wait for peers that sit in a collective; the process leaves without it, see `run_command`
    c10d.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if c10d.is_initialized():
        with PROGRESS.during(Stage.COMMUNICATION):
            c10d.barrier()


def num_collectives() -> int:
    """How many collectives of the default group this rank has begun, DistributedDataParallel's among them.

    All ranks begin the same ones in the same order, so a rank with fewer than another has not come as far. Not
    collective; safe in any thread.
    """
    if not c10d.is_initialized():
        return 0
    group = cast(Any, c10d.group.WORLD)
    backends = {id(backend): backend for backend in map(group._get_backend, group._device_types)}
    return sum(backend._get_sequence_number_for_group() for backend in backends.values())


def partition(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row and end of a rank's part of `num_rows` rows, cut in ceil chunks as DTensor's `Shard(0)` cuts them.

    The last partitions may be shorter or empty. Not collective.
    """
    chunk = -(-num_rows // world_size)
    start = min(rank * chunk, num_rows)
    return start, min(start + chunk, num_rows)


def all_gather_rows(x: Tensor) -> Tensor:
    """Concatenate the ranks' rows: x [B, ...] of one shape on all ranks gives [world_size · B, ...], in order of ranks.

    Differentiable. The gradient of a rank's rows is the sum over ranks of what each computed for them. So where all
    ranks compute the same thing from the gathered rows, that is world_size times the gradient of one of them.
    """
    if world_size() == 1:
        return x
    return cast(Tensor, _AllGatherRows.apply(x))


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of what each rank computed its part of: the same value on all ranks, of x's shape, with a graph.

    The gradient of a rank's part is the incoming one times world_size. So where all ranks backpropagate the same loss,
    what an `all_gather_rows` below sums up over ranks is world_size times that loss's gradient, as where all ranks
    compute everything.
    """
    if world_size() == 1:
        return x
    return cast(Tensor, _SumOverRanks.apply(x))


def times_world_size_in_backward(x: Tensor) -> Tensor:
    """The same values; the gradient that comes back is multiplied by world_size. Not collective.

    For a replicated parameter of whose gradient each rank computes a part: the engine averages such gradients.
    """
    return cast(Tensor, _TimesWorldSizeInBackward.apply(x))


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, in place, not differentiable; gives `x`."""
    return _all_reduce(x, c10d.ReduceOp.SUM)


def all_reduce_max(x: Tensor) -> Tensor:
    """Maximum over ranks, in place, not differentiable; gives `x`."""
    return _all_reduce(x, c10d.ReduceOp.MAX)


def all_reduce_scalar_sum(value: float) -> float:
    """Sum of a number over ranks, in float64."""
    return float(all_reduce_sum(torch.tensor(value, dtype=torch.float64)))


def all_gather_objects(value: T) -> list[T]:
    """What each rank holds, in order of ranks; anything that pickles, but not much of it: it goes through the CPU."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    with PROGRESS.during(Stage.COMMUNICATION):
        c10d.all_gather_object(gathered, value)
    return gathered


def all_ranks_agree(flag: bool) -> bool:
    """Whether `flag` is true on every rank."""
    return all_reduce_scalar_sum(float(not flag)) == 0


def _all_reduce(x: Tensor, operation: Any) -> Tensor:
    if world_size() > 1:
        with PROGRESS.during(Stage.COMMUNICATION):
            c10d.all_reduce(x.detach(), op=operation)
    return x


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * world_size()


class _TimesWorldSizeInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * world_size()


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
        # torch 2.14 renamed this collective and the one below and warns at the old names; older ones have only those
        gather = getattr(c10d, "all_gather_single", None) or c10d.all_gather_into_tensor
        with PROGRESS.during(Stage.COMMUNICATION):
            gather(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        own = gradient.new_empty((gradient.shape[0] // world_size(), *gradient.shape[1:]))
        reduce_scatter = getattr(c10d, "reduce_scatter_single", None) or c10d.reduce_scatter_tensor
        with PROGRESS.during(Stage.COMMUNICATION):
            reduce_scatter(own, gradient)
        return own
