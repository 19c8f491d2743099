"""What becomes of a network from elsewhere: a checkpoint to evaluate, or the start of a training run."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline import checkpoint
from pipeline.checkpoint_writer import save as save_checkpoint
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.data.dataset_format import CodecInfo, CropInfo, DatasetInfo, DetectorInfo
from pipeline.data.manifest import SplitIndex
from pipeline.engine.embed_rows import embed_rows
from pipeline.engine.run import CHECKPOINTS
from pipeline.engine.state import Start
from pipeline.interop.arcface_torch import ImportedBackbone
from pipeline.model.backbones import build_backbone

PARITY = 1e-3
"""Greatest difference between embeddings, as a share of the greatest value, that counts as rounding."""
NUM_CHECKED_PHOTOS = 256


@dataclass(frozen=True)
class CentreCheck:
    """Whether imported class centres belong to a data set's labels."""

    num_photos: int
    nearest_share: float
    """Of the photos, how many are nearer to their own person's centre than to any other."""
    own_cosine: float
    """Mean cosine to their own person's centre."""


def save_for_evaluation(
    output: Path, backbone: ImportedBackbone, template: Sequence[float], origin: Mapping[str, str]
) -> Path:
    """Write a checkpoint of the backbone alone, which can be evaluated and not trained; gives its directory.

    Args:
        output: directory of the run.
        backbone: what was read.
        template: five points x0, y0, … at the backbone's crop size, which its training photos were aligned to.
        origin: what to record among the versions.

    Raises:
        UserError: a run stands in `output`.
    """
    if checkpoint.latest_checkpoint(output / CHECKPOINTS) is not None:
        raise UserError(output, "a run stands there already", "an empty place", "choose another output")
    # the sections without defaults are made up of the least there is: what the network was trained with is not known
    tree = {
        "output": str(output),
        "data": {"path": "unknown"},
        "backbone": backbone.config.model_dump(),
        "training": {"epochs": 1, "global_batch": 2, "local_batch": 2},
    }
    dataset = DatasetInfo(
        digest="unknown",
        splits={},
        crop=CropInfo(size_px=backbone.crop_px, template=list(template)),
        codec=CodecInfo(quality=100),
        detector=DetectorInfo(name="none", weights_sha256="", options={}),
        versions={},
        instruction_set="",
        label_map_sha256="",
        seed=0,
        reject_counts={},
    )
    info = checkpoint.CheckpointInfo(
        step=0,
        samples=0,
        num_bad_samples=0,
        world_size=1,
        num_classes=0,
        label_map_sha256="",
        split="unknown",
        config=validate_config(tree).model_dump(mode="json"),
        dataset=dataset.model_dump(mode="json"),
        versions=checkpoint.versions() | dict(origin),
    )
    tensors = {checkpoint.BACKBONE_PREFIX + name: value for name, value in backbone.tensors.items()}
    return save_checkpoint(output / CHECKPOINTS, tensors, info, keep=1)


def put_backbone(start: Start, backbone: ImportedBackbone, where: Path) -> None:
    """Fill a run's start with an imported backbone.

    Raises:
        UserError: the run's configuration names another network, or its data set has other crops.
    """
    wanted, found = start.plan.config.backbone.model_dump(), backbone.config.model_dump()
    # dropout has no weights: the recipe decides
    for key in sorted(found.keys() - {"dropout"}, key=lambda key: (key != "kind", key)):
        if wanted.get(key) != found[key]:
            remedy = f"backbone.{key}={'null' if found[key] is None else found[key]}"
            raise UserError(f"backbone.{key}", f"{wanted.get(key)!r}, but {where} has {found[key]!r}", "", remedy)
    if start.plan.crop_px != backbone.crop_px:
        raise UserError(
            start.plan.split.name,
            f"crops of {start.plan.crop_px} px",
            f"{backbone.crop_px} px, as {where} was trained on",
            f"preprocess shard … --size {backbone.crop_px}",
        )
    start.fill({checkpoint.BACKBONE_PREFIX + name: value for name, value in backbone.tensors.items()})


def put_centres(start: Start, centres: Tensor, where: Path) -> CentreCheck:
    """Fill a run's start, its backbone being there already, with imported class centres, and look how they fit.

    arcface_torch numbers people as its RecordIO file does, or, reading folders, by the sorted names. So where all
    identities of the data set are numbers, a number is the row, and rows of people who are not there are left out;
    otherwise a label is the row, labels being places among the sorted names too.

    Args:
        start: the run's.
        centres: [C, D] float32, by arcface_torch's labels.
        where: where they come from, for messages.

    Raises:
        UserError: a head of another kind, or people without a row.
    """
    name = "head/class_centres"
    if name not in start.tensors:
        raise UserError("head.kind", "this head has no class centres", "margin_softmax")
    split = start.plan.split
    start.fill({name: centres[torch.from_numpy(rows_of_labels(split.identities(), len(centres), where))]})
    return _check_centres(start.model, split, start.plan.crop_px, start.tensors[name])


def check_crops(model: nn.Module, path: Path) -> float:
    """Compare embeddings with those that another program made of the same crops.

    Args:
        model: uint8 [B, 3, H, W] RGB to float [B, D].
        path: an .npz file with `crops`, uint8 [N, H, W, 3] RGB, and `embeddings`, float [N, D], not normalised.

    Returns:
        The greatest difference as a share of the greatest value.

    Raises:
        UserError: another kind of file, or a difference above `PARITY`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            crops, expected = file["crops"], file["embeddings"]
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(path, f"cannot be read ({error})", "an .npz file with `crops` and `embeddings`") from error
    if (
        crops.dtype != np.uint8
        or crops.ndim != 4
        or crops.shape[3] != 3
        or len(crops) != len(expected)
        or not len(crops)
    ):
        found = f"crops {crops.dtype} {crops.shape}, embeddings {expected.shape}"
        raise UserError(path, found, "crops uint8 [N, H, W, 3], embeddings [N, D]")
    model.eval()
    with torch.inference_mode():
        ours = model(torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2)))).double().numpy()
    if ours.shape != expected.shape:
        raise UserError(path, f"embeddings of shape {expected.shape}", f"{ours.shape}")
    difference = float(np.abs(ours - expected).max() / np.abs(expected).max())
    if not difference <= PARITY:
        raise UserError(
            path,
            f"embeddings differ by {difference:.2g} of the greatest value",
            f"at most {PARITY}",
            "made from the same file, in eval mode, from RGB crops scaled to [-1, 1]?",
        )
    return difference


def evaluation_model(backbone: ImportedBackbone) -> nn.Module:
    """The imported network in eval mode."""
    model = build_backbone(backbone.config, backbone.crop_px, seed=0)
    model.load_state_dict(backbone.tensors)
    return model.eval()


def rows_of_labels(identities: Sequence[str], num_centres: int, where: Path) -> npt.NDArray[np.int64]:
    """The row of arcface_torch's centres that belongs to each label: [people] int64, as `put_centres` says.

    Raises:
        UserError: people without a row.
    """
    remedy = "is a rank's file missing, or is this another data set than it was trained on?"
    if not all(name.isascii() and name.isdigit() for name in identities):
        if num_centres != len(identities):
            raise UserError(where, f"{num_centres:,} class centres", f"{len(identities):,}, one a person", remedy)
        return np.arange(num_centres)
    numbers = np.array([int(name) for name in identities], np.int64)
    if len(np.unique(numbers)) < len(numbers) or numbers.max() >= num_centres:
        found = f"{num_centres:,} class centres, while people bear {len(numbers):,} numbers up to {numbers.max():,}"
        raise UserError(where, found, "a row for each number", remedy)
    return numbers


def _check_centres(model: nn.Module, split: SplitIndex, crop_px: int, centres: Tensor) -> CentreCheck:
    rows = np.unique(np.linspace(0, len(split) - 1, NUM_CHECKED_PHOTOS).astype(np.int64))
    unit = torch.nn.functional.normalize(centres)
    num_photos, num_nearest, total = 0, 0, 0.0
    for found, embeddings in embed_rows(model, split, crop_px, rows):
        cosines = embeddings @ unit.t()
        labels = torch.from_numpy(split.label[found].astype(np.int64))
        num_photos += len(found)
        num_nearest += int((cosines.argmax(1) == labels).sum())
        total += float(cosines.gather(1, labels[:, None]).sum())
    return CentreCheck(num_photos, num_nearest / max(1, num_photos), total / max(1, num_photos))


def origin_of(path: Path) -> dict[str, str]:
    """What a checkpoint records about the file it was imported from."""
    with open(path, "rb") as file:
        return {"imported_from": f"{path.name} sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"}
