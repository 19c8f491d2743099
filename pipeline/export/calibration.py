"""The crops on which ranges are measured for int8."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.config.location import Location
from pipeline.data.decode_cpu import decode_crop
from pipeline.data.manifest import open_dataset
from pipeline.data.reader import BadSample, Reader
from pipeline.input_spec import InputSpec, network_input

NUM_CROPS = 256


def calibration_inputs(
    location: Location, split: str, spec: InputSpec, num_crops: int = NUM_CROPS
) -> npt.NDArray[np.generic]:
    """Crops of a data set, spread evenly over a split's rows, always the same: [N, 3, H, W] as `spec` says, uint8 or
    float32. Crops that cannot be read are passed over.

    Args:
        location: the data set.
        split: which split; where the set has none of the name, its first by name.
        spec: what the model takes.
        num_crops: at most so many.

    Raises:
        UserError: no such data set, crops of another size, or none that can be read.
    """
    dataset = open_dataset(location)
    if dataset.info.crop.size_px != spec.height_px:
        found = f"crops of {dataset.info.crop.size_px} px"
        raise UserError(location, found, f"{spec.height_px} px, as the model was trained on", "--calibration DATA")
    index = dataset.split(split if split in dataset.info.splits else min(dataset.info.splits))
    rows = np.setdiff1d(np.arange(len(index)), index.withdrawn)
    if len(rows) > num_crops:
        rows = rows[np.linspace(0, len(rows) - 1, num_crops).astype(np.int64)]
    crops = np.empty((len(rows), spec.height_px, spec.width_px, 3), np.uint8)
    num_read = 0
    with Reader(index) as reader:
        for content in reader.read_many(rows):
            if not isinstance(content, BadSample) and decode_crop(content, crops[num_read]) is None:
                num_read += 1
    if num_read == 0:
        raise UserError(location, "none of its photos can be read", "photos", f"preprocess verify {location}")
    return network_input(crops[:num_read].transpose(0, 3, 1, 2), spec)
