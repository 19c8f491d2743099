"""Our shards in other people's hands: plain webdataset, DALI's own reader, Hugging Face `datasets`."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import webdataset

from pipeline.data.manifest import Dataset, open_dataset
from tests.datasets import make_dataset

CROP_PX = 32

Samples = dict[str, tuple[int, npt.NDArray[np.uint8]]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("foreign")
    return open_dataset(make_dataset(root, num_samples=50, num_identities=6, crop_px=CROP_PX, samples_per_shard=20))


@pytest.fixture(scope="module")
def expected(dataset: Dataset) -> Samples:
    """What the manifest says, by key: the plan's label and the pixels, [H, W, 3] RGB."""
    split = dataset.split("train")
    samples = {}
    for row, key in enumerate(split.manifest(["key"])["key"].to_pylist()):
        jpeg = split.shards[split.shard[row]].read_bytes()[split.jpg_offset[row] :][: split.jpg_size[row]]
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        samples[key] = (int(split.plan_label[row]), pixels)
    assert len(samples) == 50
    return samples


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_every_sample(dataset: Dataset, expected: Samples) -> None:
    shards = [str(path) for path in dataset.split("train").shards]
    # The decoders are named one by one: the default ones would unpickle members of a foreign tar.
    decoders = [webdataset.handle_extension("cls", lambda data: int(data)), webdataset.imagehandler("rgb8", ["jpg"])]
    reader = webdataset.WebDataset(shards, shardshuffle=False).decode(*decoders, only=["cls", "jpg"])
    seen = {}
    for sample in reader:
        assert {name for name in sample if not name.startswith("__")} == {"cls", "jpg"}
        seen[sample["__key__"]] = sample["cls"]
        assert np.array_equal(sample["jpg"], expected[sample["__key__"]][1])
    assert seen == {key: label for key, (label, _) in expected.items()}
    del reader, sample
    gc.collect()  # while the warning is ignored


def test_dali_reads_every_sample_with_our_idx(dataset: Dataset, expected: Samples) -> None:
    from nvidia.dali import Pipeline, fn, types

    shards = dataset.split("train").shards
    pipeline = Pipeline(batch_size=25, num_threads=1, device_id=None)
    with pipeline:
        jpeg, label = fn.readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(path.with_suffix(".idx")) for path in shards],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        pipeline.set_outputs(fn.decoders.image(jpeg, device="cpu", output_type=types.RGB), label)
    pipeline.build()
    seen = []
    for _ in range(2):
        images, labels = pipeline.run()
        for slot in range(25):
            seen.append((int(bytes(np.array(labels.at(slot)))), np.array(images.at(slot)).tobytes()))
    assert Counter(seen) == Counter((label, pixels.tobytes()) for label, pixels in expected.values())


HUGGING_FACE = """
import json, sys
import datasets
datasets.disable_progress_bars()
rows = datasets.load_dataset(sys.argv[1], split="train")
assert set(rows.column_names) >= {"cls", "jpg", "__key__"}, rows.column_names
print(json.dumps([[row["__key__"], row["cls"], row["jpg"].size, row["jpg"].getpixel((3, 5))] for row in rows]))
"""


def test_hugging_face_reads_the_data_set_by_its_card(dataset: Dataset, expected: Samples, tmp_path: Path) -> None:
    # A process of its own: the library reads its settings when it is imported.
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, str(dataset.root)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    seen = {key: (label, size, pixel) for key, label, size, pixel in json.loads(result.stdout)}
    assert seen == {
        key: (label, [CROP_PX, CROP_PX], pixels[5, 3].tolist()) for key, (label, pixels) in expected.items()
    }


def test_idx_is_what_dalis_own_tool_writes(dataset: Dataset, tmp_path: Path) -> None:
    for path in dataset.split("train").shards:
        written = tmp_path / f"{path.stem}.idx"
        tool = Path(sys.executable).with_name("wds2idx")
        subprocess.run([tool, path, written], check=True, capture_output=True, timeout=60)
        assert path.with_suffix(".idx").read_bytes() == written.read_bytes()
