"""P × K batches: who is in them, what an epoch holds, and what becomes of it when P, K or the batch change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.order import IdentityBalancedConfig, PlainOrderConfig
from pipeline.data.balanced_order import BalancedOrder, BalancedPart
from pipeline.data.bijection import permute_each
from pipeline.data.counter import mix64
from pipeline.data.orders import balanced_parts, build_order
from tests.splits import make_split

PHOTOS = st.lists(st.one_of(st.integers(1, 6), st.integers(1, 60)), min_size=2, max_size=30)


def part(start: int, people: int, photos: int, others: int = 0, min_photos: int = 1) -> BalancedPart:
    return BalancedPart(
        start=start,
        global_batch=people * photos + others,
        num_identities=people,
        photos_per_identity=photos,
        min_photos=min_photos,
    )


def is_other(part: BalancedPart) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Slots of a batch that are not part of a group: as many in each stretch of a batch as its length asks for."""
    return np.diff(np.arange(part.global_batch + 1) * part.num_others // part.global_batch) == 1


@settings(deadline=None, max_examples=150)
@given(
    photos=PHOTOS,
    people=st.integers(2, 12),
    each=st.integers(2, 6),
    others=st.integers(0, 7),
    min_photos=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_batches_hold_what_they_promise(
    photos: list[int], people: int, each: int, others: int, min_photos: int, seed: int
) -> None:
    counts = np.array(photos)
    assume((counts >= min_photos).sum() >= people)
    assume(counts.sum() - np.sort(counts)[-people:].sum() >= others)
    split = make_split(photos, seed % 97)
    cut = part(0, people, each, others, min_photos)
    order = BalancedOrder(split, seed, [cut])
    eligible = counts >= min_photos
    groups = -(-counts // each)
    num_batches = order.epoch_samples // cut.global_batch
    assert num_batches >= 1
    # one more batch could not have P people each, whoever is dealt where
    assert np.minimum(groups, num_batches + 1)[eligible].sum() < people * (num_batches + 1)
    for epoch in range(2):
        seen = np.zeros(len(split), int)
        for batch in range(num_batches):
            start = (epoch * num_batches + batch) * cut.global_batch
            rows, top_ups = (fn(start, cut.global_batch) for fn in (order.rows, order.top_ups))
            in_group = ~is_other(cut)
            labels = split.label[rows[in_group]].reshape(people, each)
            assert (labels == labels[:, :1]).all()
            assert len(set(labels[:, 0].tolist())) == people
            assert eligible[labels].all()
            own = np.unique(rows[~in_group])
            assert len(own) == others
            assert not np.isin(split.label[own], labels).any()
            assert not top_ups[~in_group].any()
            seen += np.bincount(rows[in_group & ~top_ups], minlength=len(split))
            groups_of_batch = (slots[in_group].reshape(people, each) for slots in (rows, top_ups))
            for person, flags in zip(*groups_of_batch, strict=True):
                new = person[~flags]
                assert len(new) == len(set(new.tolist())) >= 1
                count = counts[split.label[person[0]]]
                assert len(set(person.tolist())) == min(each, count), "a photo stands twice though there are others"
        assert seen.max() == 1
        # what is left out: a person's groups beyond the number of batches, and fewer than P groups of the rest
        reachable = np.minimum(groups, num_batches)[eligible].sum()
        assert reachable - people * num_batches < max(people, (groups[eligible] == num_batches).sum() + people)


@settings(deadline=None, max_examples=60)
@given(
    photos=st.lists(st.integers(2, 30), min_size=14, max_size=30),
    cuts=st.lists(
        st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2), st.floats(0, 1.6)), min_size=2, max_size=4
    ),
)
def test_a_change_goes_on_with_what_the_epoch_has_not_seen(
    photos: list[int], cuts: list[tuple[int, int, int, float]]
) -> None:
    split = make_split(photos, 5)
    parts: list[BalancedPart] = []
    position, lengths = 0, []
    for people, each, others, epochs in cuts:
        parts.append(part(position, people, each, others))
        order = BalancedOrder(split, 3, parts)
        size = parts[-1].global_batch
        lengths.append(max(1, round(epochs * order.epoch_samples / size)))
        position += lengths[-1] * size
    lengths[-1] = 2 * order.epoch_samples // size
    seen: dict[int, Any] = {}
    before = -1.0
    for number, (cut, length) in enumerate(zip(parts, lengths, strict=True)):
        as_it_was = BalancedOrder(split, 3, parts[: number + 1])
        in_group = ~is_other(cut)
        for batch in range(length):
            start = cut.start + batch * cut.global_batch
            rows = order.rows(start, cut.global_batch)
            assert np.array_equal(rows, as_it_was.rows(start, cut.global_batch)), "the past has changed"
            epoch = order.epoch(start)
            assert epoch >= before - 1e-9
            before = epoch
            new = rows[in_group & ~order.top_ups(start, cut.global_batch)]
            count = seen.setdefault(int(epoch + 1e-9), np.zeros(len(split), int))
            count += np.bincount(new, minlength=len(split))
    assert max(count.max() for count in seen.values()) == 1
    for epoch in np.linspace(order.epoch(parts[-1].start), before, 9):
        assert order.epoch(round(order.position_at(epoch))) == pytest.approx(epoch, abs=1.01 / min(lengths[-1], 1))


def test_the_stream_is_the_same_however_it_is_cut() -> None:
    split = make_split([3, 9, 4, 4, 7, 12, 5])
    order = BalancedOrder(split, 1, [part(0, 3, 4, 2)])
    whole = order.rows(5, 100), order.top_ups(5, 100)
    again = BalancedOrder(split, 1, [part(0, 3, 4, 2)])
    for start in (90, 40, 5):
        assert np.array_equal(again.rows(start, 15), whole[0][start - 5 : start + 10])
        assert np.array_equal(again.top_ups(start, 15), whole[1][start - 5 : start + 10])


def test_other_seeds_epochs_and_data_give_other_batches() -> None:
    split = make_split([8] * 40)
    order = BalancedOrder(split, 1, [part(0, 8, 4)])
    length = order.epoch_samples
    assert length == 320
    first = order.rows(0, length)
    for other in (
        order.rows(length, length),
        BalancedOrder(split, 2, [part(0, 8, 4)]).rows(0, length),
        BalancedOrder(make_split([8] * 40, seed=1), 1, [part(0, 8, 4)]).rows(0, length),
    ):
        assert np.count_nonzero(first == other) < 12


def test_companions_are_mixed() -> None:
    """Over many epochs two people meet as often as chance has it: each batch draws 6 of 30."""
    split = make_split([8] * 30)
    order = BalancedOrder(split, 0, [part(0, 6, 4)])
    num_batches = 400 * order.epoch_samples // 24
    labels = split.label[order.rows(0, num_batches * 24)].reshape(num_batches, 6, 4)[:, :, 0]
    meetings = np.zeros((30, 30))
    for batch in labels:
        meetings[np.ix_(batch, batch)] += 1
    off_diagonal = meetings[~np.eye(30, dtype=bool)]
    expected = num_batches * 6 * 5 / (30 * 29)
    assert abs(off_diagonal / expected - 1).max() < 0.3
    # and a batch is no likelier to resemble the next one: each of its people is in one of the epoch's 9 others
    shared = [len(set(one) & set(other)) for one, other in zip(labels[:-1].tolist(), labels[1:].tolist(), strict=True)]
    assert abs(np.mean(shared) - (0.9 * 6 / 9 + 0.1 * 6 * 6 / 30)) < 0.05


def test_small_bijections_are_fair() -> None:
    """Every permutation of 3 turns up as often as any other, and each element of a mixed call keeps its own."""
    keys = mix64(np.arange(6000, dtype=np.uint64))
    drawn = np.stack(
        [permute_each(np.full(6000, slot, np.uint64), np.full(6000, 3, np.uint64), keys) for slot in range(3)], axis=1
    )
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(found) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # 5 degrees of freedom, p = 0.001; the draw is fixed
    sizes = np.arange(1, 200, dtype=np.uint64)
    for size in sizes.tolist():
        slots = np.arange(size, dtype=np.uint64)
        alone = permute_each(slots, np.full(size, size, np.uint64), np.full(size, 7, np.uint64))
        assert np.array_equal(np.sort(alone), slots)
    mixed = permute_each(np.zeros(199, np.uint64), sizes, np.full(199, 7, np.uint64))
    single = [
        int(permute_each(np.zeros(1, np.uint64), sizes[i : i + 1], np.full(1, 7, np.uint64))[0]) for i in range(199)
    ]
    assert mixed.tolist() == single


def test_too_few_people_and_photos_are_refused() -> None:
    split = make_split([5, 5, 1, 1])
    with pytest.raises(UserError, match=r"num_identities.*2 people with 2 photos or more"):
        BalancedOrder(split, 0, [part(0, 3, 2, min_photos=2)])
    with pytest.raises(UserError, match=r"training\.global_batch.*only 2"):
        BalancedOrder(split, 0, [part(0, 2, 2, others=3)])
    config = IdentityBalancedConfig(num_identities=4, photos_per_identity=4)
    with pytest.raises(UserError, match=r"global_batch: 12; expected 16 or more"):
        balanced_parts(config, 12, (), 0)


def test_parts_grow_where_something_changes() -> None:
    config = IdentityBalancedConfig(num_identities=2, photos_per_identity=4)
    first = balanced_parts(config, 8, (), 0)
    assert balanced_parts(config, 8, first, 80) == first
    second = balanced_parts(config, 10, first, 80)
    assert [cut.start for cut in second] == [0, 80]
    assert balanced_parts(PlainOrderConfig(), 8, (), 0) == ()
    split = make_split([6] * 5)
    assert build_order(config, split, 0, second).epoch_samples == 50  # of 10 groups of 4, two a batch of 10
