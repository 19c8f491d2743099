"""Moves a trained head to another label map: who stays keeps a centre and its optimizer's state, who is new gets one.

A new person's centre is the mean of their photos' unit-length embeddings under the trained backbone (imprinting: Qi et
al. 2018, arXiv:1712.07136), brought to the mean length of the old centres.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.data.dataset_format import label_map_sha256
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.training_data import open_training_data
from pipeline.engine.embed_rows import embed_rows
from pipeline.engine.state import Start, row_sharded

CENTRES_NAME = "class_centres"


@dataclass(frozen=True)
class LabelChange:
    """From one label map to another."""

    old_labels: npt.NDArray[np.int64]
    """[new classes]: the label that each had, or -1 for a new person."""
    num_dropped: int
    """Identities of the old map that are not in the new one."""

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """[new classes]: whose centre is carried over."""
        return self.old_labels >= 0

    @property
    def keeps_order(self) -> bool:
        """Whether the old identities are the new map's first labels, each with the label it had."""
        num_kept = int(self.kept.sum())
        return self.num_dropped == 0 and bool((self.old_labels[:num_kept] == np.arange(num_kept)).all())


def old_identities(info: checkpoint.CheckpointInfo, where: Path, data: Path | None = None) -> list[str]:
    """The identities that a checkpoint's head was trained on, by label, from its data set.

    Args:
        info: the checkpoint's.
        where: its path, for messages.
        data: where the data set stands now; None: where the configuration says.

    Raises:
        UserError: the data set is gone, or has other identities by now.
    """
    trained = validate_config(info.config, where=str(where)).data
    if trained.mix is not None and trained.mix.labels == "separate":
        raise UserError(where, "a head for each of several label spaces", "one head", "nothing can be added to it")
    root = data or trained.path or where
    remedy = "name the data set of that run with --old-data"
    try:
        split = open_training_data(trained).split if data is None else open_dataset(data).split(info.split)
        identities = split.identities()
    except UserError as error:
        raise UserError(
            root, f"cannot tell the identities of {where} ({error.found})", "the data set it was trained on", remedy
        ) from error
    if label_map_sha256(identities) != info.label_map_sha256:
        raise UserError(
            root, f"has other identities than {where} was trained on", f"the {info.num_classes} of that run", remedy
        )
    return identities


def read_renames(path: Path) -> dict[str, str]:
    """Read a CSV file `old,new` without a header: what identities are called in the new data set.

    Raises:
        UserError: an unreadable file, a line without two names, or a name that stands twice on one side.
    """
    renames: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for number, fields in enumerate(csv.reader(file), start=1):
                if len(fields) != 2 or not all(fields):
                    raise UserError(f"{path}:{number}", f"{len(fields)} fields", "two names, old,new")
                if fields[0] in renames or fields[1] in renames.values():
                    raise UserError(f"{path}:{number}", f"{','.join(fields)!r} names someone again", "each name once")
                renames[fields[0]] = fields[1]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(path, f"cannot be read ({error})", "a CSV file of old,new names") from error
    return renames


def match_identities(old: Sequence[str], new: Sequence[str], renames: Mapping[str, str], where: Path) -> LabelChange:
    """Match two label maps by name, the old names changed by `renames` first.

    Args:
        old: identity of each old label.
        new: identity of each new label.
        renames: old name to new name, for those who are called otherwise.
        where: the new data set, for messages.

    Raises:
        UserError: a rename of someone who is not there, two old identities that become one, or nobody in common.
    """
    unknown = sorted(renames.keys() - set(old))
    if unknown:
        raise UserError("--map", f"{unknown[0]!r} is no identity of the checkpoint", f"one of its {len(old)}")
    label_of: dict[str, int] = {}
    for label, name in enumerate(old):
        name = renames.get(name, name)
        if name in label_of:
            raise UserError("--map", f"{old[label]!r} and {old[label_of[name]]!r} both become {name!r}")
        label_of[name] = label
    old_labels = np.array([label_of.get(name, -1) for name in new], np.int64)
    num_kept = int((old_labels >= 0).sum())
    if num_kept == 0:
        raise UserError(
            where,
            f"shares no identity with the checkpoint (old: {old[0]!r}, …; new: {new[0]!r}, …)",
            "the old people, and new ones",
            "say with --map who is called how",
        )
    return LabelChange(old_labels, len(old) - num_kept)


def carry_over(start: Start, tensors: Mapping[str, Tensor], change: LabelChange) -> None:
    """Fill a run's start from another run's checkpoint, rows by label; rows of new people keep their initial values.

    Args:
        start: of the run with the new label map.
        tensors: the checkpoint's, whole.
        change: from its label map to the start's.

    Raises:
        UserError: the two runs differ in more than their label maps.
    """
    by_row = {name for name, _ in row_sharded(start.tensors, start.head)}
    tensors = _with_row_steps(tensors, start)
    lost = sorted(start.tensors.keys() - tensors.keys())
    if lost:
        raise UserError(lost[0], "is not in the checkpoint", remedy="keep head and optimizers of the same kind")
    # an average of the weights begins anew with the run
    names = tensors.keys() - by_row - {name for name in tensors if name.startswith(checkpoint.EMA_PREFIX)}
    start.fill({name: tensors[name] for name in sorted(names)})
    kept = torch.from_numpy(change.kept)
    labels = torch.from_numpy(change.old_labels[change.kept])
    with torch.no_grad():
        for name in by_row:
            start.tensors[name][kept] = tensors[name][labels]


def check_frozen(change: LabelChange, num_frozen: int) -> None:
    """Refuse to freeze new people, whose labels come between those of the old ones.

    Raises:
        UserError: one of the first `num_frozen` labels belongs to someone new.
    """
    new_labels = np.flatnonzero(~change.kept[:num_frozen])
    if len(new_labels):
        raise UserError(
            "head.frozen_classes",
            f"{num_frozen} labels from 0, but label {new_labels[0]} belongs to someone new",
            f"at most {new_labels[0]}",
            "preprocess shard … --extends OLD_DATA gives new people the labels after those of the old",
        )


def imprint(start: Start, split: SplitIndex, crop_px: int, change: LabelChange) -> int:
    """Give new people the centres that their photos suggest; gives the number of photos that could not be read.

    The start's backbone must have its trained values already.

    Args:
        start: filled by `carry_over`.
        split: of the new data set.
        crop_px: side of its crops.
        change: who is new.

    Raises:
        UserError: a new person without a photo that can be read, or a head without class centres.
    """
    named = [
        tensor
        for name, tensor in start.tensors.items()
        if name.startswith("head/") and name.rpartition("/")[2].rpartition(".")[2] == CENTRES_NAME
    ]
    if not named:
        raise UserError("head.kind", "this head has no class centres", "a margin softmax")
    new_labels = np.flatnonzero(~change.kept)
    if not len(new_labels):
        return 0
    place = np.full(len(change.old_labels), -1, np.int64)
    place[new_labels] = np.arange(len(new_labels))
    rows = np.setdiff1d(np.flatnonzero(~change.kept[split.label]), split.withdrawn).astype(np.int64)
    sums = torch.zeros(len(new_labels), named[0].shape[-1])
    counts = torch.zeros(len(new_labels))
    for found, embeddings in embed_rows(start.model, split, crop_px, rows):
        at = torch.from_numpy(place[split.label[found]])
        sums.index_add_(0, at, embeddings)
        counts.index_add_(0, at, torch.ones(len(found)))
    if not counts.all():
        label = int(new_labels[int((counts == 0).nonzero()[0])])
        raise UserError(
            split.identities()[label],
            "none of their photos can be read, or all are withdrawn",
            "at least one",
            "preprocess verify, preprocess compact",
        )
    directions = torch.nn.functional.normalize(sums)
    kept = torch.from_numpy(change.kept)
    with torch.no_grad():
        for centres in named:
            rows_of_new = directions * centres[kept].norm(dim=-1).mean()
            # sub-centres [C, K, D] all begin at the mean: the one that is nearest moves first
            shape = (len(new_labels), *centres.shape[1:])
            centres[~kept] = rows_of_new.view(len(new_labels), *(1,) * (centres.ndim - 2), -1).expand(shape)
    return len(rows) - int(counts.sum())


def _with_row_steps(tensors: Mapping[str, Tensor], start: Start) -> dict[str, Tensor]:
    """The checkpoint's tensors, with a dense AdamW's one counter of steps as a counter a row where those are wanted."""
    converted = dict(tensors)
    for name in start.tensors.keys() - tensors.keys():
        parameter, _, slot = name.rpartition("/")
        if slot == "row_steps" and f"{parameter}/step" in converted:
            num_rows = len(converted[f"{parameter}/exp_avg"])
            converted[name] = converted.pop(f"{parameter}/step").expand(num_rows)
    return converted
