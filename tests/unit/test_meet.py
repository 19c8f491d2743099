"""Ranks of one start find each other in a store that remembers earlier starts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as c10d

from pipeline.meet import meet


@pytest.fixture
def store() -> c10d.TCPStore:
    return c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(store: c10d.TCPStore) -> c10d.TCPStore:
    return c10d.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_ranks_agree_on_a_name_of_their_own_whoever_comes_first(store: c10d.TCPStore, order: list[int]) -> None:
    names = set()
    for _ in range(4):  # as after three restarts: the store remembers all of them
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(meet, client(store), rank, 3, 20.0) for rank in order]
            found = {future.result() for future in futures}
        assert len(found) == 1
        names |= found
    assert len(names) == 4


def test_a_quick_rank_does_not_take_the_last_start_for_its_own(store: c10d.TCPStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = {future.result() for future in [pool.submit(meet, client(store), rank, 2, 20.0) for rank in (0, 1)]}
    with pytest.raises(TimeoutError, match="rank 0 did not tell rank 1"):
        meet(client(store), 1, 2, timeout_s=0.3)  # all that rank 0 of the last start left there does not fool it
    with ThreadPoolExecutor(2) as pool:
        quick = pool.submit(meet, client(store), 1, 2, 20.0)
        with pytest.raises(TimeoutError):
            quick.result(timeout=0.2)
        assert {meet(client(store), 0, 2, 20.0), quick.result()}.isdisjoint(first)


def test_who_is_missing_is_named(store: c10d.TCPStore) -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[1, 2\] did not come"):
        meet(client(store), 0, 3, timeout_s=0.2)
