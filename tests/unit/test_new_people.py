"""A head moves to another label map: rows by name, momentum included; new people where their photos are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint import read_info
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.engine.embed_rows import embed_rows
from pipeline.engine.new_people import carry_over, check_frozen, imprint, match_identities, old_identities, read_renames
from pipeline.engine.run import plan_run
from pipeline.engine.state import Start, prepare_start
from preprocess.withdraw import withdraw
from tests.datasets import make_dataset

CROP_PX = 32
WHERE = Path("new")
OLD = ["bea", "dan", "eve", "fay"]
NEW = ["ann", "bea", "cem", "dan", "fay"]  # in the order of their labels; eve is gone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "old": make_dataset(
            tmp_path_factory.mktemp("old"), num_samples=16, num_identities=4, crop_px=CROP_PX, names=OLD
        ),
        "new": make_dataset(
            tmp_path_factory.mktemp("new"), num_samples=20, num_identities=5, crop_px=CROP_PX, names=NEW, seed=1
        ),
    }


def start_of(data: Path, output: Path, optimizer: str = "sgd", margin: str = "arcface", num_frozen: int = 0) -> Start:
    tree = {
        "output": str(output),
        "data": {"path": str(data)},
        "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 16},
        "head": {"kind": "margin_softmax", "margin": {"kind": margin}, "frozen_classes": num_frozen},
        "optim": {"head": {"kind": optimizer}, "backbone": {"kind": optimizer}},
        "training": {"epochs": 1, "global_batch": 4, "local_batch": 4},
    }
    return prepare_start(plan_run(validate_config(tree)))


def as_if_trained(start: Start) -> dict[str, torch.Tensor]:
    """Values like a trained run's: everything moved, momenta and counters too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in start.tensors.values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return {name: tensor.clone() for name, tensor in start.tensors.items()}


def test_people_are_matched_by_name() -> None:
    change = match_identities(OLD, NEW, {}, WHERE)
    assert change.old_labels.tolist() == [-1, 0, -1, 1, 3]
    assert change.num_dropped == 1
    assert not change.keeps_order
    assert match_identities(OLD, [*OLD, "gus"], {}, WHERE).keeps_order
    assert not match_identities(OLD, ["dan", "bea", "eve", "fay"], {}, WHERE).keeps_order
    assert not match_identities(OLD, OLD[:3], {}, WHERE).keeps_order


def test_people_who_are_called_otherwise(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text('eve,"ann"\nbea,zoe\n')
    renames = read_renames(tmp_path / "names.csv")
    change = match_identities(OLD, NEW, renames, WHERE)
    assert change.old_labels.tolist() == [2, -1, -1, 1, 3]
    with pytest.raises(UserError, match="'eve' and 'bea' both become 'bea'"):
        match_identities(OLD, NEW, {"eve": "bea"}, WHERE)
    with pytest.raises(UserError, match="'ivo' is no identity of the checkpoint"):
        match_identities(OLD, NEW, {"ivo": "bea"}, WHERE)
    with pytest.raises(UserError, match=r"shares no identity with the checkpoint \(old: 'bea', …; new: 'p1', …\)"):
        match_identities(OLD, ["p1", "p2"], {}, WHERE)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\nc\n", ":2: 1 fields"), ("a,b\na,c\n", "again"), ("a,b\nc,b\n", "again"), ("a,\n", ":1")],
)
def test_a_wrong_map_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_renames(tmp_path / "names.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_renames(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(("optimizer", "margin"), [("sgd", "arcface"), ("adamw", "arcface"), ("sgd", "softmax")])
def test_rows_and_their_optimizer_state_go_along(
    tmp_path: Path, data: dict[str, Path], optimizer: str, margin: str
) -> None:
    trained = as_if_trained(start_of(data["old"], tmp_path / "old", optimizer, margin))
    start = start_of(data["new"], tmp_path / "new", optimizer, margin)
    fresh = start.tensors["head/class_centres"].clone()
    change = match_identities(OLD, NEW, {}, WHERE)
    carry_over(start, trained, change)
    assert start.tensors.keys() == trained.keys()
    by_row = [name for name in trained if name.startswith("head") and trained[name].ndim]
    assert len(by_row) >= {"sgd": 2, "adamw": 3}[optimizer] * (2 if margin == "softmax" else 1)
    for name, value in trained.items():
        if name not in by_row:
            assert torch.equal(start.tensors[name], value), name
            continue
        assert torch.equal(start.tensors[name][[1, 3, 4]], value[[0, 1, 3]]), name
        of_new = start.tensors[name][[0, 2]]
        if name.startswith("head_optimizer/"):
            assert not of_new.any(), name
        elif name == "head/class_centres":
            assert torch.equal(of_new, fresh[[0, 2]])


def test_new_centres_are_the_photos_mean_at_the_old_length(tmp_path: Path, data: dict[str, Path]) -> None:
    trained = as_if_trained(start_of(data["old"], tmp_path / "old"))
    start = start_of(data["new"], tmp_path / "new")
    change = match_identities(OLD, NEW, {}, WHERE)
    carry_over(start, trained, change)
    split = start.plan.split
    assert imprint(start, split, CROP_PX, change) == 0
    centres = start.tensors["head/class_centres"]
    length = trained["head/class_centres"][[0, 1, 3]].norm(dim=1).mean()
    for label in (0, 2):
        rows = np.flatnonzero(split.label == label).astype(np.int64)
        found, embeddings = next(embed_rows(start.model, split, CROP_PX, rows))
        assert found.tolist() == rows.tolist()
        assert len(rows) == 4
        mean = embeddings.mean(0)
        torch.testing.assert_close(centres[label], length * mean / mean.norm(), rtol=1e-4, atol=1e-5)
    assert torch.equal(centres[[1, 3, 4]], trained["head/class_centres"][[0, 1, 3]])


def test_frozen_old_centres_with_adamw_count_their_steps_by_row(tmp_path: Path, data: dict[str, Path]) -> None:
    trained = as_if_trained(start_of(data["old"], tmp_path / "old", "adamw"))
    trained["head_optimizer/class_centres/step"] = torch.tensor(7.0)
    start = start_of(data["new"], tmp_path / "new", "adamw", num_frozen=1)
    assert "head_optimizer/class_centres/step" not in start.tensors
    carry_over(start, trained, match_identities(OLD, NEW, {}, WHERE))
    assert start.tensors["head_optimizer/class_centres/row_steps"].tolist() == [0, 7, 0, 7, 7]
    moments = trained["head_optimizer/class_centres/exp_avg_sq"][[0, 1, 3]]
    assert torch.equal(start.tensors["head_optimizer/class_centres/exp_avg_sq"][[1, 3, 4]], moments)


def test_new_people_are_not_frozen() -> None:
    check_frozen(match_identities(OLD, [*OLD, "gus"], {}, WHERE), 4)
    check_frozen(match_identities(OLD, NEW, {}, WHERE), 0)
    with pytest.raises(UserError, match="3 labels from 0, but label 0 belongs to someone new; expected at most 0"):
        check_frozen(match_identities(OLD, NEW, {}, WHERE), 3)


def test_photos_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, num_samples=20, num_identities=5, crop_px=CROP_PX, names=NEW)
    start = start_of(root, tmp_path / "new")
    split = start.plan.split
    change = match_identities(OLD, NEW, {}, WHERE)
    photos_of_ann = np.flatnonzero(split.label == 0)
    damage(split, photos_of_ann[0])
    assert imprint(start, split, CROP_PX, change) == 1
    for row in photos_of_ann[1:]:
        damage(split, row)
    with pytest.raises(UserError, match="ann: none of their photos can be read"):
        imprint(start, split, CROP_PX, change)


def test_withdrawn_photos_make_no_centre_and_are_no_fault(tmp_path: Path) -> None:
    root = make_dataset(tmp_path, num_samples=20, num_identities=5, crop_px=CROP_PX, names=NEW)
    split = open_dataset(root).split("train")
    keys = split.manifest(["key"])["key"].to_pylist()
    photos_of_ann = np.flatnonzero(split.label == 0)
    withdraw(root, {"key": [keys[row] for row in photos_of_ann[1:]]}, "")
    start = start_of(root, tmp_path / "new")
    change = match_identities(OLD, NEW, {}, WHERE)
    assert imprint(start, start.plan.split, CROP_PX, change) == 0
    centre = start.tensors["head/class_centres"][0]
    ((_, embedding),) = embed_rows(start.model, split, CROP_PX, photos_of_ann[:1])
    assert torch.nn.functional.cosine_similarity(centre, embedding[0], dim=0) > 0.9999
    withdraw(root, {"key": [keys[photos_of_ann[0]]]}, "")
    with pytest.raises(UserError, match="or all are withdrawn"):
        imprint(start, open_dataset(root).split("train"), CROP_PX, change)


def damage(split: SplitIndex, row: int) -> None:
    with open(split.shards[split.shard[row]], "r+b") as tar:
        tar.seek(int(split.jpg_offset[row]) + 100)
        tar.write(b"damage")


def test_all_sub_centres_of_a_new_person_begin_at_the_mean(tmp_path: Path, data: dict[str, Path]) -> None:
    start = start_of(data["new"], tmp_path / "new")
    change = match_identities(OLD, NEW, {}, WHERE)
    imprint(start, start.plan.split, CROP_PX, change)
    expected = start.tensors["head/class_centres"].clone()
    sub_centres = torch.stack([expected] * 3, dim=1)
    sub_centres[~torch.from_numpy(change.kept)] = 0
    start.tensors["head/class_centres"] = sub_centres
    imprint(start, start.plan.split, CROP_PX, change)
    torch.testing.assert_close(sub_centres, torch.stack([expected] * 3, dim=1))


def test_the_old_people_are_known_by_their_data_set_alone(tmp_path: Path, data: dict[str, Path]) -> None:
    info = read_info(start_of(data["old"], tmp_path / "old").save({}))
    assert old_identities(info, WHERE) == OLD
    assert open_dataset(data["new"]).split("train").identities() == NEW
    with pytest.raises(UserError, match="has other identities than new was trained on; expected the 4 of that run"):
        old_identities(info, WHERE, data["new"])
    with pytest.raises(UserError, match=r"cannot tell the identities of new \(no such directory\).*--old-data"):
        old_identities(info, WHERE, tmp_path / "gone")
