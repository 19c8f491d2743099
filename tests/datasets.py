"""Tiny valid data sets of random JPEGs, written straight from the contract in `pipeline.data.manifest`."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import manifest as contract

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train/*.tar
---
Random crops for tests.
"""


def make_dataset(
    root: Path, *, num_samples: int, num_identities: int, crop_px: int, samples_per_shard: int = 64, seed: int = 0
) -> Path:
    """Write a data set with one split, `train`, and return its root.

    Sample i is of identity i % num_identities; a few rejects stand among the manifests' rows. Crops of an identity
    share their large shapes, so that a model can learn them.
    """
    rng = np.random.default_rng(seed)
    for name in ("train", "manifest", "commits"):
        (root / name).mkdir(parents=True, exist_ok=True)
    faces = [random_image(np.random.default_rng([seed, number]), crop_px) for number in range(num_identities)]
    commits = []
    for number, first in enumerate(range(0, num_samples, samples_per_shard)):
        sample_ids = range(first, min(first + samples_per_shard, num_samples))
        jpegs = [_jpeg(_vary(faces[sample % num_identities], rng)) for sample in sample_ids]
        commits.append(_write_shard(root, f"train-{number:06d}", list(sample_ids), jpegs, num_identities, num_samples))
    split = contract.SplitInfo(
        num_samples=num_samples,
        num_identities=min(num_identities, num_samples),
        num_rejected=len(commits),
        num_bytes=sum(commit.tar_bytes for commit in commits),
        shards=[commit.shard for commit in commits],
    )
    info = contract.DatasetInfo(
        digest=contract.dataset_digest(commits),
        splits={"train": split},
        crop=contract.CropInfo(size_px=crop_px, template=[0.0] * 10),
        codec=contract.CodecInfo(quality=95),
        detector=contract.DetectorInfo(name="none", weights_sha256="", options={}),
        versions={},
        instruction_set="",
        label_map_sha256=contract.label_map_sha256([_identity(number) for number in range(num_identities)]),
        seed=seed,
        reject_counts={"no_face": len(commits)},
    )
    (root / "README.md").write_text(CARD)
    (root / "dataset.json").write_text(info.model_dump_json(indent=2))
    return root


def random_image(rng: np.random.Generator, side_px: int) -> npt.NDArray[np.uint8]:
    """Smooth colour blobs: [H, W, 3] uint8, the kind of content JPEG keeps well."""
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC)


def _vary(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    other = random_image(rng, image.shape[0])
    return cv2.addWeighted(image, 0.7, other, 0.3, 0)


def _jpeg(image: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _identity(number: int) -> str:
    return f"person{number:03d}"


def _write_shard(
    root: Path, shard: str, sample_ids: list[int], jpegs: list[bytes], num_identities: int, num_samples: int
) -> contract.ShardCommit:
    paths = contract.shard_paths(root, "train", shard)
    rows, lines = [], []
    with tarfile.open(paths["tar"], "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, (sample_id, jpeg) in enumerate(zip(sample_ids, jpegs, strict=True)):
            key, label = f"{sample_id:09d}", sample_id % num_identities
            cls_offset = _add_member(tar, f"{key}.cls", str(label).encode())
            jpg_offset = _add_member(tar, f"{key}.jpg", jpeg)
            cls_entry = f"cls {cls_offset} {len(str(label))} {key}.cls"
            lines.append(f"{cls_entry} jpg {jpg_offset} {len(jpeg)} {key}.jpg\n")
            rows.append(_manifest_row(shard, sample_id, label) | {"row": row, "jpg_offset": jpg_offset})
            rows[-1] |= {"key": key, "jpg_size": len(jpeg), "jpg_crc32": zlib.crc32(jpeg), "status": "kept"}
    reject = {"status": contract.STATUS_REJECTED, "reject_reason": "no_face", "row": -1, "jpg_offset": -1}
    rows.insert(len(rows) // 2, _manifest_row(shard, num_samples + sample_ids[0], 0) | reject)
    paths["idx"].write_text(f"v1.2 {len(lines)}\n" + "".join(lines))
    pq.write_table(pa.Table.from_pylist(rows, contract.MANIFEST_SCHEMA), paths["manifest"])
    hashes = {name: hashlib.sha256(paths[name].read_bytes()).hexdigest() for name in ("tar", "idx", "manifest")}
    commit = contract.ShardCommit(
        shard=shard,
        split="train",
        plan_hash="",
        num_samples=len(sample_ids),
        num_rejected=1,
        tar_bytes=paths["tar"].stat().st_size,
        tar_sha256=hashes["tar"],
        idx_sha256=hashes["idx"],
        manifest_sha256=hashes["manifest"],
    )
    paths["commit"].write_text(json.dumps(commit.model_dump(), indent=2))
    return commit


def _manifest_row(shard: str, sample_id: int, label: int) -> dict[str, object]:
    return {
        "sample_id": sample_id,
        "key": f"{sample_id:09d}",
        "split": "train",
        "shard": shard,
        "jpg_size": 0,
        "jpg_crc32": 0,
        "label": label,
        "identity": _identity(label),
        "source": f"{_identity(label)}/{sample_id}.jpg",
        "reject_reason": "",
    }


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a file and return its data's offset."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return int(tar.offset) - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
