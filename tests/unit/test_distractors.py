"""Who counts as a stranger, which photos below a folder are found, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import DatasetInfo
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Model
from pipeline.inputs import distractors
from pipeline.inputs.distractors import Strangers, open_distractors
from pipeline.inputs.test_sets import Request
from tests.datasets import make_dataset
from tests.public_sets import write_photo

CROP_PX = 32


def recogniser(trained: DatasetInfo | None = None, trained_on: list[tuple[str, str]] | None = None) -> Recogniser:
    embedder = Embedder(lambda images: images.float().mean((2, 3)), CROP_PX, torch.device("cpu"), "model")
    return Recogniser(embedder, Model.model_construct(), trained, trained_on or [])


def open_folder(path: Path, people: Set[str] = frozenset()) -> Strangers:
    return open_distractors(recogniser(), Request(distractors=path, detector="none"), people)


def paths(strangers: Strangers) -> list[str]:
    return sorted(photo.path for photo in strangers.photos)


def test_people_who_search_are_found_wherever_their_name_stands(tmp_path: Path) -> None:
    own = ["actors/Ann Lee/x.jpg", "Ann Lee/1.jpg", "Ann Lee_0001.jpg", "flat/Bo_B_0012.png", "a/Bo_B/c/2.jpg"]
    # Another Ann, names that only begin so, and a number that is no official one.
    others = ["Ann/1.jpg", "Ann Lee Jr_0001.jpg", "Bo_0001.jpg", "flat/Bo_B_1.jpg", "Ann Lee.jpg"]
    for name in [*own, *others]:
        write_photo(tmp_path / name, 0)
    found = open_folder(tmp_path, {"Ann Lee", "Bo_B"})
    assert (paths(found), found.num_own) == (sorted(others), len(own))


def test_folders_behind_links_are_walked_once(tmp_path: Path) -> None:
    write_photo(tmp_path / "elsewhere" / "b" / "1.jpg", 0)
    write_photo(tmp_path / "strangers" / "a" / "1.jpg", 0)
    root = tmp_path / "strangers"
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "zlink").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / ".hidden").symlink_to(tmp_path / "elsewhere")
    found = open_folder(root)
    assert paths(found) == ["a/1.jpg", "link/b/1.jpg"]
    assert not any("could not be read" in note for note in found.notes)


def test_folders_that_cannot_be_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "c/1.jpg"):
        write_photo(tmp_path / name, 0)
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if Path(path).name in ("a", "c"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    found = open_folder(tmp_path)
    assert paths(found) == ["b/1.jpg"]
    first = tmp_path / "a"
    assert found.notes[-1] == f"2 folders of distractors could not be read, the first {first} (Permission denied)."


def test_of_too_many_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(8):
        write_photo(tmp_path / f"{n}.jpg", n)
    monkeypatch.setattr(distractors, "MOST", 5)
    found = open_folder(tmp_path)
    order = np.random.RandomState(0).permutation(8)[:5]
    assert [photo.path for photo in found.photos] == [f"{n}.jpg" for n in order]
    assert found.notes[-1] == "Of 8 distractors, 5 were drawn."


def test_a_data_set_of_distractors_is_compared_with_the_training_data(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "a", num_samples=6, num_identities=3, crop_px=CROP_PX)
    info = open_dataset(data).info
    template = info.model_copy(update={"crop": info.crop.model_copy(update={"template": "another"})})
    trained = template.model_copy(update={"detector": info.detector.model_copy(update={"name": "yunet"})})
    request = Request(distractors=data)
    found = open_distractors(recogniser(trained, [("train", info.digest)]), request, {"person000"})
    assert (len(found.photos), found.num_own) == (4, 2)
    assert found.notes == [
        "The distractors' crops were found by none, the training crops by yunet.",
        "The distractors' crops are aligned to another template than the training crops.",
        "The model was trained on 2 of the 2 people among the distractors.",
    ]
    assert open_distractors(recogniser(info, [("train", "other")]), request, frozenset()).notes == []


@pytest.mark.parametrize("option", ["detector", "weights"])
def test_options_for_unaligned_photos_are_refused_with_a_data_set(tmp_path: Path, option: str) -> None:
    data = make_dataset(tmp_path / "a", num_samples=2, num_identities=1, crop_px=CROP_PX)
    given: dict[str, Any] = {option: "none" if option == "detector" else tmp_path}
    with pytest.raises(UserError, match=f"--{option}: given with data sets; expected photos that are not aligned yet"):
        open_distractors(recogniser(), Request(distractors=data, **given), frozenset())
