"""Anchors against the gallery, a block of anchors at a time: cosines, positives, negatives.

The gallery is the global batch and, where there is one, the memory; both parts are sorted by label, so the samples of
an anchor's own label are one run of columns in each, and no mask of anchors times gallery is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.metric.batch import GlobalBatch

BLOCK_BYTES_CPU = 4 * 2**20
"""Of a block of cosines on a CPU: near its caches, and large enough for full matrix products."""
BLOCK_BYTES_GPU = 64 * 2**20
"""Of a block of cosines on a GPU."""


@dataclass(frozen=True)
class PastSamples:
    """The filled part of a memory, sorted by label."""

    unit: Tensor
    """[m, D], of unit length."""
    labels: Tensor
    """[m] int64, ascending."""
    sample_ids: Tensor
    """[m] int64."""


@dataclass(frozen=True)
class AnchorBlock:
    """b anchors, neighbours in the batch's order, against a gallery of M columns; the first n of them are the batch."""

    rows: slice
    """Where the anchors stand among the n samples of the batch."""
    labels: Tensor
    """[b] int64."""
    sample_ids: Tensor
    """[b] int64."""
    positive_columns: Tensor
    """[b, K] int64, K the most samples of one label; padding and the anchor itself are masked."""
    is_positive: Tensor
    """[b, K] bool."""
    positive_cosine: Tensor
    """[b, K], anything where masked."""
    negative_cosine: Tensor
    """[b, M], minus infinity at every column of the anchor's own label."""
    own_start: Tensor
    """[b] int64: of the batch, the columns of the anchor's own label begin here ..."""
    own_stop: Tensor
    """[b] int64: ... and end before here."""


@dataclass(frozen=True)
class _Runs:
    """Of a part of the gallery, each anchor's run of columns with its own label."""

    start: Tensor
    stop: Tensor

    def window(self, rows: slice) -> tuple[int, int]:
        """The columns that hold all runs of some anchors; labels ascend, so from the first's to the last's."""
        edges = torch.stack([self.start[rows.start], self.stop[rows.stop - 1]]).tolist()
        return int(edges[0]), int(edges[1])


def anchor_blocks(
    batch: GlobalBatch, past: PastSamples | None, gallery: Tensor, block_bytes: int | None
) -> Iterator[AnchorBlock]:
    """This rank's anchors, block by block. Not collective; a rank may have none.

    Args:
        past: what the memory adds to the batch.
        gallery: [M, D], the batch's `unit` and below it the memory's.
        block_bytes: memory of a block's cosines; None chooses by device.
    """
    num_batch = len(batch.labels)
    parts = [_runs(batch.labels, batch.labels, 0)]
    gallery_ids = batch.sample_ids
    if past is not None:
        parts.append(_runs(batch.labels, past.labels, num_batch))
        gallery_ids = torch.cat([gallery_ids, past.sample_ids])
    if block_bytes is None:
        block_bytes = BLOCK_BYTES_CPU if gallery.device.type == "cpu" else BLOCK_BYTES_GPU
    block_rows = max(1, block_bytes // (max(1, len(gallery)) * gallery.element_size()))
    for first in range(batch.first_anchor, batch.last_anchor, block_rows):
        rows = slice(first, min(first + block_rows, batch.last_anchor))
        cosine = batch.unit[rows] @ gallery.t()
        columns, is_positive = _positives(parts, rows)
        positive_ids = gallery_ids[columns]
        own_row = torch.arange(rows.start, rows.stop, device=columns.device)[:, None]
        is_positive &= columns != own_row
        # a photo of the batch that is in the memory too is no pair with itself
        is_positive &= (columns < num_batch) | (positive_ids != batch.sample_ids[rows, None])
        positive_cosine = cosine.gather(1, columns)
        for part in parts:
            start, stop = part.window(rows)
            column = torch.arange(start, stop, device=columns.device)
            is_same = (column >= part.start[rows, None]) & (column < part.stop[rows, None])
            cosine[:, start:stop].masked_fill_(is_same, -torch.inf)
        yield AnchorBlock(
            rows=rows,
            labels=batch.labels[rows],
            sample_ids=batch.sample_ids[rows],
            positive_columns=columns,
            is_positive=is_positive,
            positive_cosine=positive_cosine,
            negative_cosine=cosine,
            own_start=parts[0].start[rows],
            own_stop=parts[0].stop[rows],
        )


def _runs(labels: Tensor, part_labels: Tensor, first_column: int) -> _Runs:
    return _Runs(
        torch.searchsorted(part_labels, labels) + first_column,
        torch.searchsorted(part_labels, labels, right=True) + first_column,
    )


def _positives(parts: list[_Runs], rows: slice) -> tuple[Tensor, Tensor]:
    """Columns [b, K] of the anchors' own labels, run after run, and which of them are not padding."""
    sizes = torch.stack([part.stop[rows] - part.start[rows] for part in parts])
    totals = sizes.sum(0)
    place = torch.arange(int(totals.max()), device=totals.device).expand(len(totals), -1)
    is_filled = place < totals[:, None]
    columns = parts[0].start[rows, None] + place
    if len(parts) > 1:
        rest = place - sizes[0][:, None]
        columns = torch.where(rest < 0, columns, parts[1].start[rows, None] + rest)
    return columns.where(is_filled, 0), is_filled
