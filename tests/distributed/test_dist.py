"""Collectives, their gradients, and the launcher that tests use."""

from __future__ import annotations

import os
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Shard

from pipeline import dist
from pipeline.config.errors import UserError
from tests.distributed.processes import RankFailure, run_ranks


@given(num_rows=st.integers(0, 200), world_size=st.integers(1, 17))
def test_partition_cuts_as_dtensor_does(num_rows: int, world_size: int) -> None:
    cuts = [dist.partition(num_rows, rank, world_size) for rank in range(world_size)]
    for rank, (start, stop) in enumerate(cuts):
        size, offset = Shard.local_shard_size_and_offset(num_rows, world_size, rank)
        assert stop - start == size
        assert start == offset or size == 0
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(num_rows))


def test_single_process_needs_no_group() -> None:
    device = dist.initialise("cpu")
    assert device == torch.device("cpu")
    assert not torch.distributed.is_initialized()
    assert (dist.rank(), dist.world_size()) == (0, 1)
    x = torch.arange(6.0).view(2, 3)
    assert dist.all_gather_rows(x) is x
    assert dist.all_reduce_sum(x) is x
    assert dist.all_reduce_max(x) is x
    assert dist.all_reduce_scalar_sum(2.5) == 2.5
    assert dist.all_ranks_agree(True)
    assert not dist.all_ranks_agree(False)
    dist.barrier()
    dist.shutdown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(UserError, match="no GPU for local rank 0"):
        dist.initialise("cuda")


def collectives() -> dict[str, object]:
    rank, size = dist.rank(), dist.world_size()
    x = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = dist.all_gather_rows(x)
    # each rank weighs every row differently; a row's gradient is the sum of the ranks' weights
    weights = torch.arange(2.0 * size)[:, None] + 100 * rank
    (gathered * weights).sum().backward()
    summed = torch.tensor([1.0, float(rank)])
    greatest = torch.tensor([float(-rank), float(rank)])
    assert dist.all_reduce_sum(summed) is summed
    assert dist.all_reduce_max(greatest) is greatest
    part = torch.tensor(float(rank), requires_grad=True)
    joined = dist.sum_over_ranks(part)
    (3 * joined).backward()
    replicated = torch.tensor(1.0, requires_grad=True)
    (rank * dist.times_world_size_in_backward(replicated)).backward()
    return {
        "rank": (rank, size),
        "joined": joined.detach(),
        "part_gradient": part.grad,
        "replicated_gradient": replicated.grad,
        "gathered": gathered.detach(),
        "strided": dist.all_gather_rows(torch.full((3, 2), rank).t()),
        "flags": dist.all_gather_rows(torch.tensor([rank == 1])),
        "gradient": x.grad,
        "sum": summed,
        "max": greatest,
        "scalar": dist.all_reduce_scalar_sum(rank + 0.1),
        "agree": (dist.all_ranks_agree(True), dist.all_ranks_agree(rank > 0), dist.all_ranks_agree(False)),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_collectives(size: int) -> None:
    for rank, result in enumerate(run_ranks(collectives, size)):
        assert result["rank"] == (rank, size)
        assert torch.equal(result["gathered"], torch.arange(size).float().repeat_interleave(2)[:, None].expand(-1, 3))
        assert torch.equal(result["strided"], torch.arange(size).repeat_interleave(2)[:, None].expand(-1, 3))
        assert torch.equal(result["flags"], torch.arange(size) == 1)
        own = size * torch.tensor([2.0 * rank, 2.0 * rank + 1]) + 100 * sum(range(size))
        assert torch.equal(result["gradient"], own[:, None].expand(-1, 3))
        assert torch.equal(result["sum"], torch.tensor([float(size), float(sum(range(size)))]))
        assert torch.equal(result["max"], torch.tensor([0.0, size - 1.0]))
        assert result["scalar"] == pytest.approx(sum(range(size)) + 0.1 * size)
        assert result["agree"] == (True, False, False)
        # every rank's part of a sum, and a replicated parameter of whose gradient each computes a part: the mean over
        # ranks of what comes back is the whole gradient
        assert result["joined"].item() == sum(range(size))
        assert result["part_gradient"].item() == 3.0 * size
        assert result["replicated_gradient"].item() == rank * size


def raise_on_last_rank() -> None:
    if dist.rank() == dist.world_size() - 1:
        raise UserError("somewhere", "a fault of this rank alone")
    dist.all_reduce_sum(torch.zeros(1000))


def test_a_rank_that_fails_alone_neither_waits_nor_hangs_the_launcher() -> None:
    started = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        run_ranks(raise_on_last_rank, 2, timeout_s=50)
    # the other rank may see the connection close first, and fail too
    assert "Traceback" in str(failure.value)
    assert time.monotonic() - started < 40


def die(how: str) -> None:
    if dist.rank() == 1:
        if how == "exit":
            os._exit(3)
        time.sleep(60)


def test_launcher_reports_a_rank_that_dies_or_sleeps() -> None:
    with pytest.raises(RankFailure, match=r"rank \d of 2"):
        run_ranks(die, 2, "exit")
    with pytest.raises(RankFailure, match=r"no result in time from ranks \[0, 1\] of 2"):
        run_ranks(die, 2, "sleep", timeout_s=3)


def fail_alike() -> None:
    raise UserError("labels", "the same fault on all ranks")


def test_launcher_hands_over_what_a_rank_raised() -> None:
    with pytest.raises(RankFailure, match="the same fault on all ranks") as failure:
        run_ranks(fail_alike, 2)
    assert isinstance(failure.value.error, UserError)
    assert failure.value.error.where == "labels"
