"""A contact sheet of augmented photos: what training will see of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.config.augment import Augmentation
from pipeline.config.errors import UserError
from pipeline.data.augment import Step, draw_steps
from pipeline.data.decode_cpu import decode_crop
from pipeline.data.manifest import SplitIndex
from pipeline.data.order import PlainOrder
from pipeline.data.photo_steps import apply_step
from pipeline.data.reader import BadSample, Reader

_LEAST_SIDE_PX = 112
_GAP_PX = 6
_TEXT_PX = 11
_LINES = 3


@dataclass(frozen=True)
class Sheet:
    """A contact sheet."""

    pixels: npt.NDArray[np.uint8]
    """[height, width, 3] RGB."""
    num_unreadable: int
    """Photos that cannot be read, and are left out."""


def contact_sheet(
    split: SplitIndex, operations: Sequence[Augmentation], *, crop_px: int, seed: int, rows: int, columns: int
) -> Sheet:
    """Photos as they are in the first column, and as later epochs will see them beside it, with what was done.

    Args:
        split: the samples; the first ones of the plain order are shown.
        operations: of the configuration.
        crop_px: side of the crops.
        seed: of the run.
        rows: photos.
        columns: variants of each.

    Raises:
        UserError: none of the photos can be read.
    """
    order = PlainOrder.create(split.digest, len(split), seed)
    shown = order.rows(0, min(rows, len(split)))
    # each epoch has an order of its own, so a photo stands elsewhere in each
    positions = np.stack([_positions_of(shown, order, len(split), epoch) for epoch in range(columns)], axis=1)
    cells: list[list[tuple[npt.NDArray[np.uint8], str]]] = []
    with Reader(split) as reader:
        for row, of_row in zip(shown.tolist(), positions, strict=True):
            photo = _stored_photo(reader, row, crop_px)
            if photo is None:
                continue
            steps = draw_steps(operations, seed, of_row, crop_px)
            cells.append([(photo, "as stored"), *(_variant(photo, steps, slot) for slot in range(columns))])
    if not cells:
        raise _none_readable()
    return Sheet(_lay_out(cells), len(shown) - len(cells))


def sheet_of_each(
    split: SplitIndex, operations: Sequence[Augmentation], *, crop_px: int, seed: int, columns: int
) -> Sheet:
    """A row for each operation, applied alone and always, on the first photo that can be read; see `contact_sheet`."""
    order = PlainOrder.create(split.digest, len(split), seed)
    with Reader(split) as reader:
        tried = (_stored_photo(reader, int(order.rows(position, 1)[0]), crop_px) for position in range(len(split)))
        num_unreadable, photo = next(
            ((number, photo) for number, photo in enumerate(tried) if photo is not None), (0, None)
        )
    if photo is None:
        raise _none_readable()
    cells = []
    for operation in operations:
        always = operation.model_copy(update={"probability": 1.0})
        steps = draw_steps([always], seed, np.arange(columns), crop_px)
        cells.append([(photo, "as stored"), *(_variant(photo, steps, slot) for slot in range(columns))])
    return Sheet(_lay_out(cells), num_unreadable)


def _none_readable() -> UserError:
    return UserError("DATA", "no photo can be read", "a sound data set", "run `preprocess verify`")


def _positions_of(rows: npt.NDArray[np.int64], order: PlainOrder, num_rows: int, epoch: int) -> npt.NDArray[np.int64]:
    """Stream positions of `rows` in an epoch."""
    in_order = order.rows(epoch * num_rows, num_rows)
    slots = np.flatnonzero(np.isin(in_order, rows))
    slots = slots[np.argsort(in_order[slots])]
    return epoch * num_rows + slots[np.searchsorted(in_order[slots], rows)]


def _stored_photo(reader: Reader, row: int, crop_px: int) -> npt.NDArray[np.uint8] | None:
    """[S, S, 3] uint8 RGB, None where the sample cannot be read."""
    photo = np.empty((crop_px, crop_px, 3), np.uint8)
    content = reader.read(row)
    if isinstance(content, BadSample) or decode_crop(content, photo) is not None:
        return None
    return photo


def _variant(photo: npt.NDArray[np.uint8], steps: Sequence[Step], slot: int) -> tuple[npt.NDArray[np.uint8], str]:
    changed, said = photo.copy(), []
    for step in steps:
        if step.is_on[slot]:
            values = step.at(slot)
            changed = apply_step(step.kind, changed, values)
            shown = [f"{value:.3g}" for name, value in values.items() if name not in ("fill",) and name[0] != "m"]
            said.append(" ".join([step.kind.replace("_", " "), *shown[:2]]))
    return changed, "\n".join(said) or "unchanged"


def _lay_out(cells: Sequence[Sequence[tuple[npt.NDArray[np.uint8], str]]]) -> npt.NDArray[np.uint8]:
    side = max([_LEAST_SIDE_PX, *(len(photo) for line in cells for photo, _ in line)])
    width = max((len(line) for line in cells), default=0)
    step_y = side + _LINES * (_TEXT_PX + 2) + _GAP_PX
    sheet = Image.new("RGB", (width * (side + _GAP_PX) + _GAP_PX, len(cells) * step_y + _GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_PX)
    for y, line in enumerate(cells):
        for x, (photo, text) in enumerate(line):
            left, top = _GAP_PX + x * (side + _GAP_PX), _GAP_PX + y * step_y
            shown = photo if len(photo) == side else cv2.resize(photo, (side, side), interpolation=cv2.INTER_NEAREST)
            sheet.paste(Image.fromarray(np.asarray(shown, np.uint8)), (left, top))
            lines = text.split("\n")
            if len(lines) > _LINES:
                lines = [*lines[: _LINES - 1], f"and {len(lines) - _LINES + 1} more"]
            for number, one in enumerate(lines):
                while draw.textlength(one, font=font) > side and len(one) > 1:
                    one = one[:-1]
                draw.text((left, top + side + 1 + number * (_TEXT_PX + 2)), one, "black", font=font)
    return np.asarray(sheet)
