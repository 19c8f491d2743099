"""Several data sets as one: rows, labels, bytes, and an order that mixes them by weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.order import IdentityBalancedConfig, PlainOrderConfig, StreamingOrderConfig
from pipeline.config.schema import DataConfig
from pipeline.data.manifest import open_dataset
from pipeline.data.mix import MixedSplit, mix_splits
from pipeline.data.mixed_order import MixedOrder
from pipeline.data.orders import balanced_parts, build_order
from pipeline.data.reader import WITHDRAWN, BadSample, Reader
from pipeline.data.step_plan import plan_step
from pipeline.data.training_data import open_training_data
from preprocess.withdraw import withdraw
from tests.datasets import make_dataset
from tests.splits import make_split

NAMES = {"one": ["ada", "bob", "eve"], "two": ["bob", "fay", "ada", "gus"]}
CROP_PX = 32


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two data sets of 30 and 44 photos that share two names."""
    folder = tmp_path_factory.mktemp("mix")
    made = {}
    for number, (name, people) in enumerate(NAMES.items()):
        (folder / name).mkdir()
        made[name] = make_dataset(
            folder / name,
            num_samples=30 + 14 * number,
            num_identities=len(people),
            crop_px=CROP_PX,
            samples_per_shard=11,
            seed=number,
            names=people,
        )
    return made


def mixed(roots: dict[str, Path], folder: Path, labels: Any = "merged") -> MixedSplit:
    parts = {name: open_dataset(root).split("train") for name, root in roots.items()}
    return mix_splits(parts, labels, None, folder)


@pytest.mark.parametrize("labels", ["merged", "disjoint", "separate"])
def test_labels_name_the_people_of_each_row(roots: dict[str, Path], tmp_path: Path, labels: str) -> None:
    split = mixed(roots, tmp_path, labels)
    identities = split.identities()
    expected: list[str] = []
    for name, part in zip(split.names, split.parts, strict=True):
        own = [part.identities()[label] for label in part.label]
        expected += own if labels == "merged" else [f"{name}/{person}" for person in own]
    assert [identities[label] for label in split.label] == expected
    assert len(identities) == split.num_labels == (5 if labels == "merged" else 7)
    assert split.label_spaces == ((3, 4) if labels == "separate" else (split.num_labels,))
    assert np.array_equal(split.label[:30], split.parts[0].label), "the first set keeps its labels"
    assert len(np.unique(split.sample_id)) == len(split) == 74
    assert np.array_equal(np.sort(split.by_label), np.arange(74))
    assert np.array_equal(split.label[split.by_label], np.sort(split.label))
    assert split.manifest(["identity"])["identity"].to_pylist() == [name.rpartition("/")[2] for name in expected]


def test_bytes_come_from_the_set_that_a_row_is_of(roots: dict[str, Path], tmp_path: Path) -> None:
    split = mixed(roots, tmp_path)
    rows = np.random.default_rng(0).permutation(len(split))
    with Reader(split) as reader, Reader(split.parts[0]) as first, Reader(split.parts[1]) as second:
        found = reader.read_many(rows)
        expected = [first.read(row) if row < 30 else second.read(row - 30) for row in rows.tolist()]
    assert found == expected
    assert all(isinstance(content, bytes) for content in found)
    assert split.commit(len(split.parts[0].shards)) == split.parts[1].commit(0)
    assert split.commit(0) == split.parts[0].commit(0)


def test_the_index_is_built_once_and_for_one_mix(roots: dict[str, Path], tmp_path: Path) -> None:
    mixed(roots, tmp_path)
    (built,) = tmp_path.glob("*.arrow")
    before = built.stat()
    again = mixed(roots, tmp_path)
    assert built.stat().st_mtime_ns == before.st_mtime_ns
    assert not again.label.flags.owndata, "mapped, not copied"
    turned = mixed({"two": roots["two"], "one": roots["one"]}, tmp_path)
    assert turned.digest != again.digest
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    built.write_bytes(built.read_bytes()[:-100])
    assert np.array_equal(mixed(roots, tmp_path).label, again.label), "a damaged file is built anew"


def test_withdrawn_photos_of_any_set_are_hidden(tmp_path: Path) -> None:
    made = {}
    for number, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        made[name] = make_dataset(
            tmp_path / name, num_samples=12, num_identities=3, crop_px=CROP_PX, seed=number, names=NAMES[name][:3]
        )
    withdraw(made["two"], {"identity": ["fay"]}, "asked")
    split = mixed(made, tmp_path / "mixes")
    names = split.identities()
    hidden = {row for row in range(len(split)) if names[split.label[row]] == "fay"}
    assert hidden == set(split.withdrawn.tolist())
    assert len(hidden) == 4
    with Reader(split) as reader:
        for row, content in enumerate(reader.read_many(np.arange(len(split)))):
            is_hidden = isinstance(content, BadSample) and content.reason == WITHDRAWN
            assert is_hidden == (row in hidden)


@settings(deadline=None, max_examples=60)
@example(sizes=[1, 1, 1, 1], weights=[1, 1, 1, 5], cuts=[], streams=False)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    cuts=st.lists(st.integers(0, 70), max_size=6),
    streams=st.booleans(),
)
def test_each_set_is_gone_through_whole_again_and_again(
    sizes: list[int], weights: list[int], cuts: list[int], streams: bool
) -> None:
    order, first_rows = build(sizes, weights[: len(sizes)], streams)
    total, shares = 3 * sum(sizes), np.array(weights[: len(sizes)]) / sum(weights[: len(sizes)])
    rows = order.rows(0, total)
    owner = np.searchsorted(first_rows, rows, side="right") - 1
    for number, size in enumerate(sizes):
        own = rows[owner == number] - first_rows[number]
        for first in range(0, len(own), size):
            seen = np.bincount(own[first : first + size], minlength=size)
            assert seen.max() == 1
            assert len(own) - first < size or seen.min() == 1
        # never a slot more than one away from its share
        behind = np.arange(1, total + 1) * shares[number] - np.cumsum(owner == number)
        assert np.abs(behind).max() <= 1 + 1e-9
    position, parts = 0, [np.empty(0, np.int64)]
    for size in cuts:
        parts.append(order.rows(position, size))
        position += size
    assert np.array_equal(np.concatenate(parts), order.rows(0, position))


def build(sizes: Sequence[int], weights: Sequence[int], streams: bool = False) -> tuple[MixedOrder, list[int]]:
    config = StreamingOrderConfig(block_photos=4, window_blocks=2) if streams else PlainOrderConfig()
    splits = [make_split([size], seed=number) for number, size in enumerate(sizes)]
    orders = [build_order(config, split, seed=3) for split in splits]
    first_rows = [sum(sizes[:number]) for number in range(len(sizes))]
    return MixedOrder([f"set{n}" for n in range(len(sizes))], orders, first_rows, weights), first_rows


def test_micro_batches_have_their_share_whatever_the_ranks() -> None:
    order, first_rows = build([100, 10], [3, 1])
    seen = []
    for ranks in (1, 2, 4):
        rows = []
        for step in range(4):
            for rank in range(ranks):
                for micro in plan_step(order, step * 32, 32, 8, rank, ranks).micro_batches:
                    assert np.count_nonzero(micro.rows >= first_rows[1]) == 2
                    rows.append(micro.rows)
        seen.append(np.concatenate(rows))
    assert all(np.array_equal(rows, seen[0]) for rows in seen)
    assert order.epoch_samples == 110
    assert order.describe() == (
        "mix: set0 75.0% of the slots, 0.825 times an epoch; set1 25.0% of the slots, 2.75 times an epoch"
    )


def test_opened_as_configured(roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sets = {
        name: {"path": str(root), "weight": weight} for (name, root), weight in zip(roots.items(), (3, 1), strict=True)
    }
    data = open_training_data(DataConfig.model_validate({"mix": {"sets": sets}}))
    assert [one.name for one in data.sets] == ["one", "two"]
    order = build_order(PlainOrderConfig(), data.split, seed=0)
    assert np.count_nonzero(order.rows(0, 400) < 30) == 300
    assert len(list((tmp_path / "facemill" / "mixes").glob("*.arrow"))) == 1
    without = DataConfig.model_validate({"mix": {"sets": {name: {"path": str(root)} for name, root in roots.items()}}})
    split = open_training_data(without).split
    assert np.array_equal(np.sort(build_order(PlainOrderConfig(), split, seed=0).rows(0, 74)), np.arange(74))
    balanced = IdentityBalancedConfig(num_identities=3, photos_per_identity=4)
    people = build_order(balanced, split, 0, balanced_parts(balanced, 12, (), 0))
    labels = split.label[people.rows(0, 12)]
    assert sorted(np.bincount(labels, minlength=5)[np.unique(labels)].tolist()) == [4, 4, 4]


def test_sets_of_other_crops_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    larger = make_dataset(tmp_path, num_samples=6, num_identities=2, crop_px=48)
    config = DataConfig.model_validate(
        {"mix": {"sets": {"a": {"path": str(roots["one"])}, "b": {"path": str(larger)}}}}
    )
    with pytest.raises(UserError, match=r"data\.mix\.sets\.b: crops of 48 px .*expected 32 px"):
        open_training_data(config)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "not neither"),
        ({"path": "a", "mix": {"sets": {"x": {"path": "a"}, "y": {"path": "b"}}}}, "not both"),
        ({"mix": {"sets": {"x": {"path": "a"}}}}, "at least 2"),
        ({"mix": {"sets": {"x": {"path": "a", "weight": 2}, "y": {"path": "b"}}}}, "some sets have a weight"),
        ({"mix": {"sets": {"x": {"path": "a", "weight": 9999}, "y": {"path": "b", "weight": 2}}}}, "add up to 10001"),
        ({"split": "test", "mix": {"sets": {"x": {"path": "a"}, "y": {"path": "b"}}}}, "a split of its own"),
        (
            {
                "order": {"kind": "identity_balanced"},
                "mix": {"sets": {"x": {"path": "a", "weight": 1}, "y": {"path": "b", "weight": 1}}},
            },
            "leave the weights",
        ),
    ],
)
def test_refused_in_a_line(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_config(
            {"output": "out", "data": data, "training": {"epochs": 1, "global_batch": 8, "local_batch": 8}}, "recipe"
        )
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
