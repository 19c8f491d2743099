"""A mining round against loops in float64, and the same on any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.data.counter import uniform
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.mined_list import MinedList
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.mining import Miner
from pipeline.model.backbones import build_backbone
from pipeline.model.metric.hardest import HardestExamples, hardest_examples
from preprocess.withdraw import withdraw
from tests.datasets import make_dataset
from tests.distributed.processes import RankFailure, run_ranks
from tests.unit.test_loader import decode_directly

CROP_PX = 32
SEED = 5
BAD_ROW = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 photos of 11 people; one of the photos is damaged."""
    root = make_dataset(tmp_path_factory.mktemp("data"), num_samples=90, num_identities=11, crop_px=CROP_PX)
    split = open_dataset(root).split("train")
    with open(split.shards[split.shard[BAD_ROW]], "r+b") as tar:
        tar.seek(int(split.jpg_offset[BAD_ROW]) + 200)
        tar.write(b"damage")
    return root


def config_tree(data: Path, **mining: Any) -> dict[str, Any]:
    return {
        "output": "run",
        "seed": SEED,
        "data": {"path": str(data), "num_threads": 1},
        "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 16, "dropout": 0.5},
        "training": {"epochs": 1, "global_batch": 40, "local_batch": 8},
        "mining": {"subset": 80, "photos_per_person": 8, "negatives": 2, "margin": 0.02, **mining},
    }


def make_backend(tree: dict[str, Any]) -> DDPBackend:
    config = validate_config(tree)
    model = build_backbone(config.backbone, CROP_PX, config.seed)
    with torch.no_grad():  # statistics of a network that has been trained for a while, its batch norms not all alike
        for number, (name, buffer) in enumerate(model.named_buffers()):
            if name.endswith(("running_mean", "running_var")):
                noise = torch.rand(buffer.shape, generator=torch.Generator().manual_seed(number))
                buffer.copy_(noise + 0.5 if name.endswith("var") else noise - 0.5)
    return DDPBackend(model, config.optim.backbone, "fp32", torch.device("cpu"))


def mine_on_a_rank(tree: dict[str, Any], number: int, stopper: int | None) -> dict[str, Any]:
    """One round, and what it left behind."""
    config = validate_config(tree)
    backend = make_backend(tree)
    backend.model.train()
    next(module for module in backend.model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    modes = [module.training for module in backend.model.modules()]
    state = {name: tensor.clone() for name, tensor in backend.model.state_dict().items()}
    generator = torch.get_rng_state()
    split = open_dataset(config.data.path).split("train")
    miner = Miner(config, split, crop_px=CROP_PX, backend=backend, device=torch.device("cpu"))
    lines: list[str] = []
    mined = miner.mine(number, say=lines.append, is_stop_asked=lambda: stopper == dist.rank())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in backend.model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in backend.model.state_dict().items())
    assert all(parameter.grad is None for parameter in backend.model.parameters())
    return {"mined": mined, "lines": lines}


def subset_by_loops(split: SplitIndex, number: int, size: int, photos_per_person: int) -> list[int]:
    """Rows by label, then row."""
    by_person: dict[int, list[int]] = {}
    for row, label in enumerate(split.label.tolist()):
        by_person.setdefault(label, []).append(row)
    people = sorted(label for label, rows in by_person.items() if len(rows) > 1)
    people.sort(key=lambda label: uniform(f"mined people of round {number}", SEED, np.array([label]))[0])
    taken: list[int] = []
    for label in people:
        rows = by_person[label]
        rows.sort(key=lambda row: uniform(f"mined photos of round {number}", SEED, np.array([row]))[0])
        if len(taken) + min(len(rows), photos_per_person) > size:
            break
        taken += rows[:photos_per_person]
    return sorted(taken, key=lambda row: (split.label[row], row))


def groups_by_loops(
    embeddings: npt.NDArray[np.float64], labels: list[int], num_negatives: int
) -> list[tuple[list[int], float, float]]:
    """Of each anchor: [anchor, positive, negatives], and the two distances."""
    groups = []
    for anchor, own in enumerate(labels):
        positives, negatives = [], []
        for other, label in enumerate(labels):
            d = math.dist(embeddings[anchor], embeddings[other])
            if other != anchor:
                (positives if label == own else negatives).append((d, other))
        if positives and len(negatives) >= num_negatives:
            nearest = sorted(negatives)[:num_negatives]
            farthest = max(positives)
            groups.append(([anchor, farthest[1], *(n for _, n in nearest)], farthest[0], nearest[0][0]))
    return groups


def expected_list(data: Path, tree: dict[str, Any], number: int) -> dict[str, Any]:
    """The round by plain means: photos one by one through the network in eval mode, then loops."""
    split = open_dataset(data).split("train")
    mining = validate_config(tree).mining
    assert mining is not None
    rows = subset_by_loops(split, number, mining.subset, mining.photos_per_person)
    num_bad = rows.count(BAD_ROW)
    rows = [row for row in rows if row != BAD_ROW]
    model = make_backend(tree).model.eval()
    with torch.no_grad():
        images = [decode_directly(split, row) for row in rows]
        vectors = torch.cat([model(image[None]) for image in images]).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = groups_by_loops(vectors, split.label[rows].tolist(), mining.negatives)
    violating = [group for group in groups if group[1] ** 2 + mining.margin > group[2] ** 2]
    wanted = max(len(violating), mining.mined_slots(40) // mining.group_size)
    hardest = sorted(groups, key=lambda group: group[2] ** 2 - group[1] ** 2)[:wanted]
    listed = [[rows[place] for place in group[0]] for group in groups if group in hardest]
    return {
        "rows": listed,
        "num_bad": num_bad,
        "share": len(violating) / len(groups),
        "positive": float(np.mean([group[1] for group in groups])),
        "negative": float(np.mean([group[2] for group in groups])),
    }


@pytest.mark.parametrize(("margin", "subset"), [(0.02, 80), (0.0, 45), (4.0, 90)])
def test_list_equals_loops_on_any_number_of_ranks(data: Path, margin: float, subset: int) -> None:
    tree = config_tree(data, margin=margin, subset=subset)
    number = 3
    expected = expected_list(data, tree, number)
    lists: list[MinedList] = []
    for world_size in (1, 2, 4):
        for found in run_ranks(mine_on_a_rank, world_size, tree, number, None):
            lists.append(found["mined"])
            assert len(found["lines"]) == 1
            assert "mined round 3" in found["lines"][0]
    assert len({mined.content for mined in lists}) == 1, "every byte the same on 1, 2 and 4 ranks"
    mined = lists[0]
    assert mined.rows.tolist() == expected["rows"]
    assert mined.metrics["mined_bad_samples"] == expected["num_bad"]
    assert mined.metrics["mined_violating_share"] == expected["share"]
    assert mined.metrics["mined_positive_distance"] == pytest.approx(expected["positive"], rel=1e-4)
    assert mined.metrics["mined_negative_distance"] == pytest.approx(expected["negative"], rel=1e-4)
    if margin == 4.0:
        assert (expected["share"], expected["num_bad"]) == (1.0, 1)


def test_a_rank_that_is_asked_to_stop_ends_the_round_on_all(data: Path) -> None:
    found = run_ranks(mine_on_a_rank, 2, config_tree(data), 1, 1)
    assert [result["mined"] for result in found] == [None, None]


def test_too_many_unreadable_photos_end_the_run(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=60, num_identities=5, crop_px=CROP_PX, samples_per_shard=30)
    assert len(list((data / "train").glob("*.tar"))) == 3
    (data / "train" / "train-000001.tar").write_bytes(b"gone")
    with pytest.raises(RankFailure) as caught:
        run_ranks(mine_on_a_rank, 2, config_tree(data, subset=60, photos_per_person=12), 1, None)
    assert isinstance(caught.value.error, UserError)
    assert "20 of 60 samples of a mining round could not be read" in str(caught.value.error)


def test_withdrawn_photos_are_in_no_list_and_stop_nothing(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=60, num_identities=5, crop_px=CROP_PX, samples_per_shard=30)
    split = open_dataset(data).split("train")
    gone = set(split.sample_id[:20].tolist())
    keys = split.manifest(["key"])["key"].to_pylist()[:20]
    withdraw(data, {"key": keys}, "")
    (found,) = run_ranks(mine_on_a_rank, 1, config_tree(data, subset=60, photos_per_person=12), 1, None)
    mined: MinedList = found["mined"]
    assert mined.metrics["mined_bad_samples"] == 0
    assert mined.rows.size
    assert not gone & set(split.sample_id[mined.rows.ravel()].tolist())


def search_on_a_rank(unit: torch.Tensor, labels: torch.Tensor, num_negatives: int, block_bytes: int) -> HardestExamples:
    return hardest_examples(unit, labels, num_negatives, block_bytes)


@pytest.mark.parametrize(
    ("photos", "num_negatives"),
    [([3, 5, 1, 2, 8, 1, 1, 4], 3), ([2, 2], 2), ([2, 2], 3), ([1, 1, 1], 1), ([6], 1), ([1, 2], 7), ([20, 1, 1], 2)],
)
def test_search_equals_loops(photos: list[int], num_negatives: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(photos)), torch.tensor(photos))
    unit = torch.nn.functional.normalize(
        torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    expected = groups_by_loops(unit.numpy(), labels.tolist(), num_negatives)
    for block_rows in (1, 4, 100):
        results = [hardest_examples(unit.float(), labels, num_negatives, 4 * block_rows * len(labels))]
        if block_rows == 4:
            results += run_ranks(search_on_a_rank, 4, unit.float(), labels, num_negatives, 4 * block_rows * len(labels))
        for found in results:
            assert found.members.tolist() == [group[0] for group in expected]
            assert found.members.shape[1] == 2 + num_negatives
            for cosine, place in ((found.positive_cosine, 1), (found.negative_cosine, 2)):
                distances = (2 - 2 * cosine).clamp(min=0).sqrt().tolist()
                assert distances == pytest.approx([group[place] for group in expected], abs=1e-5)


def test_memory_is_that_of_the_set_and_a_block() -> None:
    size, largest = 3000, 0
    unit = torch.nn.functional.normalize(torch.randn(size, 8, generator=torch.Generator().manual_seed(0)))

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        hardest_examples(unit, torch.arange(size) // 3, 2, block_bytes=4 * 10 * size)
    assert largest <= 10 * size
