"""The last step: card, index and `dataset.json`, written when every shard of the plan is committed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from pipeline.atomic_write import write_atomically
from pipeline.config.errors import DataError, UserError
from pipeline.data.dataset_format import (
    STATUS_KEPT,
    CodecInfo,
    CropInfo,
    DatasetInfo,
    ShardCommit,
    SplitInfo,
    dataset_digest,
    label_map_sha256,
    shard_paths,
)
from pipeline.data.manifest import Dataset
from preprocess.align import template
from preprocess.crops import describe_detector
from preprocess.plan import INSTRUCTION_SET, Plan
from preprocess.shard import read_commit
from preprocess.storage import work_folder


def finish_dataset(plan: Plan, out: Path) -> DatasetInfo:
    """Describe a data set whose shards are all committed. Repeating it gives the same bytes.

    Raises:
        UserError: shards are missing, or no photo at all was usable.
    """
    commits = read_commits(plan, out)
    info = describe(plan, out, commits)
    if info.splits[commits[0].split].num_samples == 0:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in info.reject_counts.items())
        found = f"no usable photo in the split {commits[0].split!r} ({counts})"
        raise DataError(out, found, "photos with a face", f"look at {out / 'rejects'}")
    work = work_folder(out)
    write_atomically(out / "README.md", _card(info).encode(), work)
    for leftover in out.glob(".index.arrow.*.tmp"):  # of a reader or a run that was killed while it wrote
        leftover.unlink(missing_ok=True)
    dataset = Dataset(root=out, info=info)
    for name in info.splits:
        dataset.split(name)  # builds index.arrow
    text = json.dumps(info.model_dump(), indent=1, ensure_ascii=False) + "\n"
    write_atomically(out / "dataset.json", text.encode(), work)
    shutil.rmtree(work, ignore_errors=True)  # the data set is finished; network file systems keep open files a while
    return info


def read_commits(plan: Plan, out: Path) -> list[ShardCommit]:
    """The commit records of all shards, in the plan's order, which is that of the digest.

    Raises:
        UserError: naming the first shard that is not finished.
    """
    commits = []
    for number in range(plan.num_shards):
        shard = plan.shard(number)
        commit = read_commit(out, shard, plan.hash)
        if commit is None:
            raise UserError(out, f"shard {shard.name} is not finished", remedy="repeat the `preprocess shard` command")
        commits.append(commit)
    return commits


def describe(plan: Plan, out: Path, commits: list[ShardCommit]) -> DatasetInfo:
    """What `dataset.json` says, from the plan, the commit records and the manifests."""
    splits: dict[str, SplitInfo] = {}
    rejects: Counter[str] = Counter()
    for split in dict.fromkeys(commit.split for commit in commits):
        own = [commit for commit in commits if commit.split == split]
        labels: set[int] = set()
        for commit in own:
            path = shard_paths(out, split, commit.shard)["manifest"]
            table = pq.read_table(path, columns=["status", "label", "reject_reason"])
            kept = table["status"].to_numpy() == STATUS_KEPT
            labels.update(table["label"].to_numpy()[kept].tolist())
            rejects.update(table["reject_reason"].to_numpy()[~kept].tolist())
        splits[split] = SplitInfo(
            num_samples=sum(commit.num_samples for commit in own),
            num_identities=len(labels),
            num_rejected=sum(commit.num_rejected for commit in own),
            num_bytes=sum(commit.tar_bytes for commit in own),
            shards=[commit.shard for commit in own],
        )
    options = plan.options
    return DatasetInfo(
        digest=dataset_digest(commits),
        splits=splits,
        crop=CropInfo(size_px=options.crop.size_px, template=template(options.crop.size_px).ravel().tolist()),
        codec=CodecInfo(quality=options.quality, keeps_jpegs=options.keep_jpegs),
        detector=describe_detector(options.crop, options.weights_sha256),
        versions={name: version for name, version in plan.versions.items() if name != INSTRUCTION_SET},
        instruction_set=plan.versions.get(INSTRUCTION_SET, ""),
        label_map_sha256=label_map_sha256(plan.identities()),
        seed=options.seed,
        reject_counts=dict(sorted(rejects.items())),
        licence=options.licence,
    )


def _card(info: DatasetInfo) -> str:
    """A card for Hugging Face `datasets`. It declares the tars only: a Parquet configuration was opened as a tar."""
    header: dict[str, object] = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": name, "path": f"{name}/*.tar"} for name, split in info.splits.items() if split.num_samples
                ],
            }
        ]
    }
    if info.licence:
        header |= {"license": "other", "license_name": info.licence}
    rows = "".join(
        f"| {name} | {split.num_samples:,} | {split.num_identities:,} | {len(split.shards):,} | {split.num_bytes:,} |\n"
        for name, split in info.splits.items()
    )
    aligned = (
        "as they came" if info.detector.name == "none" else f"found by {info.detector.name}, aligned on five points"
    )
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# Aligned face crops\n\n{info.crop.size_px} px square JPEG, {aligned}. "
        f"Digest `{info.digest}`.\n\n"
        f"| split | photos | identities | shards | bytes |\n|---|---|---|---|---|\n{rows}\n"
        "Each sample is `KEY.cls` (the identity's number, as text) and `KEY.jpg`. The identities' names, the sources,\n"
        "boxes, landmarks and checksums stand in `manifest/*.parquet`. Read it with any WebDataset reader:\n\n"
        "```python\nimport webdataset\n\n"
        'webdataset.WebDataset("train/train-000000.tar", shardshuffle=False).decode("rgb8")\n```\n\n'
        + (f"Licence: {info.licence}\n" if info.licence else "Licence: that of the photos.\n")
    )
