"""From a configuration to an order of samples."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.errors import UserError
from pipeline.config.order import (
    IdentityBalancedConfig,
    OrderConfig,
    PlainOrderConfig,
    StreamingOrderConfig,
)
from pipeline.data.balanced_order import BalancedOrder, BalancedPart
from pipeline.data.manifest import SplitIndex
from pipeline.data.mix import MixedSplit
from pipeline.data.mixed_order import MixedOrder
from pipeline.data.order import PlainOrder
from pipeline.data.selected_order import SelectedOrder
from pipeline.data.step_plan import EpochOrder
from pipeline.data.streaming_order import StreamingOrder
from pipeline.data.weighted_order import WeightedOrder, read_factors


def build_order(config: OrderConfig, split: SplitIndex, seed: int, parts: Sequence[BalancedPart] = ()) -> EpochOrder:
    """Build the order that a configuration names.

    Args:
        config: which.
        split: the samples.
        seed: of the run.
        parts: for an identity-balanced order, how the stream is cut: see `balanced_parts`.

    Raises:
        UserError: the split has too few people or photos for it, or its list of weights cannot be read.
    """
    if isinstance(split, MixedSplit) and split.weights is not None:
        orders = [build_order(config, part, seed) for part in split.parts]
        return MixedOrder(split.names, orders, split.first_rows.tolist(), split.weights)
    if isinstance(config, IdentityBalancedConfig):
        return BalancedOrder(split, seed, parts)
    if isinstance(config, StreamingOrderConfig):
        return StreamingOrder(split, seed, config.block_photos, config.window_blocks)
    if isinstance(config, PlainOrderConfig):
        if config.min_photos > 1 or config.max_photos is not None:
            return SelectedOrder(split, seed, config.min_photos, config.max_photos)
        return PlainOrder.create(split.digest, len(split), seed)
    factors = None if config.weights is None else read_factors(config.weights, split)
    return WeightedOrder(split, seed, config.power, factors)


def balanced_parts(
    config: OrderConfig, global_batch: int, before: Sequence[BalancedPart], position: int
) -> tuple[BalancedPart, ...]:
    """How the stream of a run is cut: as so far, and from a position on as configured now.

    Args:
        config: which order; none but an identity-balanced one has parts.
        global_batch: slots of a global batch.
        before: the parts up to now, empty for a new run.
        position: samples consumed.

    Raises:
        UserError: a global batch smaller than P × K.
    """
    if not isinstance(config, IdentityBalancedConfig):
        return ()
    people, photos = config.num_identities, config.photos_per_identity
    if people * photos > global_batch:
        raise UserError(
            "training.global_batch",
            f"{global_batch}",
            f"{people * photos} or more, for {people} people × {photos} photos",
            "take fewer people (data.order.num_identities) or photos (data.order.photos_per_identity)",
        )
    part = BalancedPart(
        start=position,
        global_batch=global_batch,
        num_identities=people,
        photos_per_identity=photos,
        min_photos=config.min_photos,
    )
    if before and before[-1] == part.model_copy(update={"start": before[-1].start}):
        return tuple(before)
    return (*before, part)
