"""Files of embeddings in the place of models."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.embed import Embeddings, extract_embeddings
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, DatasetPhotos, PhotoSource, Rejected
from pipeline.inputs.models import open_model
from tests.datasets import make_dataset


class Folder:
    """A source of which nothing but names matters."""

    def load(self, photo: Photo) -> Crop | Rejected:
        raise AssertionError("no photo is needed")


def write(path: Path, keys: list[str], vectors: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, key=np.array(keys), embedding=np.array(vectors, np.float64))
    else:
        lists = pa.array([list(map(float, vector)) for vector in vectors], pa.list_(pa.float64()))
        pq.write_table(pa.table({"key": keys, "embedding": lists}), path)
    return path


def look_up(path: Path, source: PhotoSource, photos: list[Photo]) -> Embeddings:
    counts: list[int] = []
    embedder = open_model(str(path), torch.device("cpu")).embedder
    found = extract_embeddings(embedder, source, photos, batch=2, advance=counts.append)
    assert sum(counts) == len(photos)
    return found


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_photos_go_by_their_names_in_pair_lists(tmp_path: Path, suffix: str) -> None:
    path = write(
        tmp_path / f"e{suffix}", ["Ann/Ann_0001.jpg", "Ann_0003", "x/y/St.Bo_0002.PNG"], [[3, 4], [0, -2], [5, 12]]
    )
    photos = [Photo("St.Bo", 2), Photo("Ann", 1), Photo("Ann", 2)]
    found = look_up(path, Folder(), photos)
    assert found.photos == photos[:2]
    np.testing.assert_allclose(found.vectors, [[5 / 13, 12 / 13], [0.6, 0.8]], rtol=1e-15)
    assert found.missing == {Photo("Ann", 2): "no embedding in the file"}
    assert found.batch_ms == []


def test_photos_that_lists_name_by_path_go_by_it(tmp_path: Path) -> None:
    path = write(tmp_path / "e.npz", ["Ann/front/1.jpg", "Ann/side/1.jpg"], [[3, 4], [0, -2]])
    photos = [Photo("Ann", 0, "Ann/side/1.jpg"), Photo("Ann", 0, "Ann/side/2.jpg")]
    found = look_up(path, Folder(), photos)
    assert found.photos == photos[:1]
    assert found.vectors.tolist() == [[0.0, -1.0]]
    assert found.norms is not None
    assert found.norms.tolist() == [2.0]


def test_two_names_of_one_photo_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.npz", ["a/Ann_0001.jpg", "b/Ann_0001.png"], [[3.0, 4.0], [0.0, -2.0]])
    with pytest.raises(UserError, match=r"'a/Ann_0001.jpg' and 'b/Ann_0001.png' name one photo"):
        look_up(path, Folder(), [Photo("Ann", 1)])


def test_photos_of_a_data_set_go_by_their_keys(tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "data", num_samples=8, num_identities=4, crop_px=16))
    source = DatasetPhotos(dataset, ["train"])
    table = dataset.split("train").manifest(["key", "identity", "source"])
    rows = table.to_pylist()
    # the numbers of a vector say which row it is; the last row has none
    vectors = [[row + 1.0, 1.0] for row in range(7)]
    path = write(tmp_path / "e.parquet", [row["key"] for row in rows[:7]], vectors)
    names = sorted({row["identity"] for row in rows})
    photos = [Photo(name, number) for name in names for number in source.numbers()[name]]
    found = look_up(path, source, [*photos, Photo("nobody", 1)])
    sources = {name: sorted(row["source"] for row in rows if row["identity"] == name) for name in names}
    for photo, vector in zip(found.photos, found.vectors, strict=True):
        place = next(place for place, row in enumerate(rows) if row["key"] == source.key(photo))
        assert rows[place]["identity"] == photo.identity
        # numbers count the rejected photo of the first person, too, which comes last by its name
        assert rows[place]["source"] == sources[photo.identity][photo.number - 1]
        np.testing.assert_allclose(vector, np.array(vectors[place]) / np.hypot(*vectors[place]))
    assert sorted(found.missing.values()) == ["no embedding in the file", "not in the data set"]
    assert source.key(Photo(names[0], 3)) == Rejected("not_an_image")


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_files_that_cannot_be_used_are_named_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"e{suffix}"
    nan, zero = [[1.0, 2.0], [3.0, float("nan")]], [[1.0, 2.0], [0.0, 0.0]]
    for keys, vectors, message in (
        (["a", "b"], nan, "1 of 2 embeddings are not finite or zero, first that of 'b'"),
        (["a", "b"], zero, "1 of 2 embeddings are not finite or zero, first that of 'b'"),
        (["a", "b", "a"], [[1.0, 2.0]] * 3, "1 keys stand there more than once, first 'a'"),
        (["a"], [[]], "holds no embeddings"),
    ):
        write(path, keys, vectors)
        with pytest.raises(UserError, match=message) as caught:
            open_model(str(path), torch.device("cpu"))
        assert "\n" not in str(caught.value)
    path.write_text("text\nmore text\n")
    for file, message in ((path, "cannot be used"), (tmp_path / f"none{suffix}", "no such file")):
        with pytest.raises(UserError, match=message) as caught:
            open_model(str(file), torch.device("cpu"))
        assert "\n" not in str(caught.value)


def test_parquet_of_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    for columns, message in (
        ({"key": ["a"], "vector": [[1.0]]}, "cannot be used"),
        ({"key": ["a"], "embedding": [1.0]}, "cannot be used"),
        (
            {"key": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]},
            "embeddings of 1 and of 2 numbers; expected one length",
        ),
        ({"key": ["a", "b"], "embedding": [[1.0], None]}, "a key, an embedding or a number is null"),
        ({"key": ["a", None], "embedding": [[1.0], [1.0]]}, "a key, an embedding or a number is null"),
        ({"key": ["a"], "embedding": [["x"]]}, "embeddings of string; expected floats"),
        ({"key": pa.array([], pa.string()), "embedding": pa.array([], pa.list_(pa.float32()))}, "holds no embeddings"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=message) as caught:
            open_model(str(path), torch.device("cpu"))
        assert "\n" not in str(caught.value)


def test_npz_of_other_arrays(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    for arrays, message in (
        ({"key": np.array(["a"])}, "cannot be used .*embedding is not a file"),
        ({"key": np.array(["a"], object), "embedding": np.ones((1, 2))}, "cannot be used .*allow_pickle"),
        ({"key": np.array([1]), "embedding": np.ones((1, 2))}, r"key is int64 \[1\], embedding float64 \[1, 2\]"),
        ({"key": np.array(["a"]), "embedding": np.ones(2)}, r"embedding float64 \[2\]"),
        ({"key": np.array(["a"]), "embedding": np.ones((2, 2))}, "1 keys and 2 embeddings"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=message) as caught:
            open_model(str(path), torch.device("cpu"))
        assert "\n" not in str(caught.value)


def test_it_embeds_no_other_photos(tmp_path: Path) -> None:
    path = write(tmp_path / "e.npz", ["a"], [[1.0, 2.0]])
    embedder = open_model(str(path), torch.device("cpu")).embedder
    with pytest.raises(UserError, match="a file of embeddings; expected a model"):
        embedder.embed(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_damaged_arrays_are_named_in_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, key=np.array(["a"]), embedding=np.ones((1, 2)))
    content = whole.read_bytes()
    start = 30 + content[26] + 256 * content[27] + content[28] + 256 * content[29]  # of the first array's bytes
    cut = content[:start] + b"\xff" * 8 + content[start + 8 :]
    flags = bytearray(content)
    for place in (6, content.index(b"PK\x01\x02") + 8):
        flags[place] |= 1  # encrypted
    header = b"{'descr': '<U1', 'fortran_order': False, 'shape': (1152921504606846,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        file.writestr("key.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    for name, damaged in (
        ("cut", cut),
        ("encrypted", bytes(flags)),
        ("huge", (tmp_path / "huge.npz").read_bytes()),
    ):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}\.npz: cannot be used \(.*expected an array key") as caught:
            open_model(str(path), torch.device("cpu"))
        assert "\n" not in str(caught.value)
