"""Ranks that are started again find each other, not what dead ones left behind."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as c10d

from pipeline.generation import agree_on_generation


@pytest.fixture
def server() -> c10d.TCPStore:
    return c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def join(server: c10d.TCPStore, rank: int, world_size: int, delay_s: float = 0.0, timeout_s: float = 30.0) -> str:
    time.sleep(delay_s)
    store = c10d.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    return agree_on_generation(store, rank, world_size, timeout_s)


def agree(server: c10d.TCPStore, world_size: int, late_rank: int) -> str:
    with ThreadPoolExecutor(world_size) as pool:
        names = set(pool.map(lambda rank: join(server, rank, world_size, 0.2 * (rank == late_rank)), range(world_size)))
    (name,) = names
    return name


def test_each_group_has_a_name_of_its_own_whoever_comes_last(server: c10d.TCPStore) -> None:
    names = [agree(server, world_size, late_rank) for world_size in (3, 2, 3, 3) for late_rank in range(world_size)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("dead", [[0], [1], [0, 1], [2, 1]])
def test_ranks_that_died_while_joining_do_not_count(server: c10d.TCPStore, dead: list[int]) -> None:
    before = agree(server, 3, late_rank=1)
    for rank in dead:
        with pytest.raises(TimeoutError, match="did not come"):
            join(server, rank, 3, timeout_s=0.1)
    assert agree(server, 3, late_rank=2) != before


def test_who_did_not_come_is_said(server: c10d.TCPStore) -> None:
    with pytest.raises(TimeoutError, match="ranks 1, 2 did not come"):
        join(server, 0, 3, timeout_s=0.1)
