"""The batches of a run, segment by segment: with mining, a loader reads as far as there is a list."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch

from pipeline import checkpoint, dist
from pipeline.data.loader import Loader, StepBatch
from pipeline.data.mined_list import MinedList, prune_lists, write_list
from pipeline.data.mined_order import MinedOrder, Segment
from pipeline.data.order import PlainOrder
from pipeline.data.step_plan import Order
from pipeline.engine.backend import Backend
from pipeline.engine.mining import Miner
from pipeline.engine.run import RunPlan


class Stream:
    """One rank's batches, and the mined list that they come from in part.

    Args:
        plan: of the run.
        backend: owner of the network, which mining rounds embed with.
        device: where micro-batches are wanted.
    """

    def __init__(self, plan: RunPlan, backend: Backend, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._miner: Miner | None = None
        if plan.mining is not None:
            self._miner = Miner(plan.config, plan.split, crop_px=plan.crop_px, backend=backend, device=device)
        self._mined: MinedList | None = None if plan.resume is None else plan.resume.mined

    @property
    def metrics(self) -> dict[str, float]:
        """What the round found whose list is in use."""
        return {} if self._mined is None else self._mined.metrics

    def batches(
        self, position: int, *, say: Callable[[str], None], is_stop_asked: Callable[[], bool]
    ) -> Generator[StepBatch]:
        """Yield the steps from a stream position to the end of the run. Collective on all ranks where a round is due.

        A round is done when the first batch of its segment is asked for, so a checkpoint that is written at a border
        is older than the round, and a run that goes on from it does the same round.

        Args:
            position: the number of samples consumed so far.
            say: called with lines to show.
            is_stop_asked: whether this rank was asked to stop; a round then ends the batches early.
        """
        while position < self._plan.total_samples:
            segment = self._segment(position)
            if self._miner is not None and segment.number and position == segment.start:
                mined = self._miner.mine(segment.number, say=say, is_stop_asked=is_stop_asked)
                if mined is None:
                    return
                self._mined = mined
                if dist.rank() == 0:
                    write_list(self._plan.config.output, mined)
            stop = min(segment.stop, self._plan.total_samples)
            with open_loader(self._plan, self._device, position, stop, self._order(segment)) as loader:
                yield from loader
            position = segment.stop

    def reference(self, samples: int) -> checkpoint.MinedListInfo | None:
        """The list that the batch at a stream position comes from; None at a border, where it is to be made anew."""
        if self._mined is None or samples == self._segment(samples).start:
            return None
        return checkpoint.MinedListInfo(file=self._mined.file, sha256=self._mined.sha256)

    def prune(self) -> None:
        """Remove the lists that neither a checkpoint nor this run refers to. Rank 0 acts for all; not collective."""
        if self._miner is None or dist.rank() != 0:
            return
        infos = [checkpoint.read_info(path) for path in checkpoint.all_checkpoints(self._plan.checkpoints)]
        kept = {info.mined_list.file for info in infos if info.mined_list is not None}
        prune_lists(self._plan.config.output, kept if self._mined is None else {*kept, self._mined.file})

    def _segment(self, position: int) -> Segment:
        plan = self._plan
        if plan.mining is None:
            return Segment(0, 0, plan.total_samples)
        return plan.mining.segment(position)

    def _order(self, segment: Segment) -> Order:
        plan, plain = self._plan, self._plan.order
        if plan.mining is None or segment.number == 0:
            return plain
        assert isinstance(plain, PlainOrder)
        assert self._mined is not None
        assert self._mined.number == segment.number
        return MinedOrder.create(plain, plan.mining, segment, self._mined, plan.config.seed)


def open_loader(plan: RunPlan, device: torch.device, start: int, stop: int, order: Order) -> Loader:
    """This rank's loader of a part of a run.

    Args:
        plan: of the run.
        device: where micro-batches are wanted.
        start, stop: stream positions, numbers of samples.
        order: which samples these are.
    """
    config = plan.config
    return Loader(
        plan.split,
        seed=config.seed,
        global_batch=config.training.global_batch,
        local_batch=config.training.local_batch,
        rank=dist.rank(),
        world_size=dist.world_size(),
        start=start,
        stop=stop,
        decoder=config.data.decoder,
        augment=config.data.augment,
        device=device,
        crop_px=plan.crop_px,
        order=order,
        prefetch_steps=config.data.prefetch_steps,
        num_threads=config.data.num_threads,
    )
