"""From stream positions to micro-batches on the device, read and decoded ahead by threads of our own.

    with Loader(split, seed=0, global_batch=256, local_batch=64, rank=0, world_size=1, start=0, stop=100_000,
                decoder=CpuDecoder(), augment=[Flip()], device=device, crop_px=112) as loader:
        for batch in loader:
            ...

Samples are read and decoded on `num_threads` threads; one more puts micro-batches together, in order. The consumer
submits the work for a step `prefetch_steps` ahead whenever it takes one, so memory is bounded, and nothing runs on
once it stops.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.augment import Augmentation
from pipeline.config.decoder import CpuDecoder, DaliDecoder
from pipeline.data.augment import Step, draw_steps
from pipeline.data.decoder import Decoder, make_decoder
from pipeline.data.manifest import SplitIndex
from pipeline.data.order import PlainOrder
from pipeline.data.reader import BadSample, Reader, SampleReads
from pipeline.data.stage_times import PLAN, StageTimes
from pipeline.data.step_plan import MicroBatchPlan, Order, StepPlan, check_batches, plan_step
from pipeline.data.store.base import StoreStats


@dataclass(frozen=True)
class MicroBatch:
    """`local_batch` consecutive slots of the stream."""

    images: Tensor
    """[local_batch, 3, H, W] uint8 RGB on the target device, channels last in memory: convolutions like it.
    0 where there was nothing to decode. Fillers share it with the batch they copy: do not write to it."""
    labels: Tensor
    """[local_batch] int64 on the target device, contiguous labels; -1 on masked slots."""
    sample_ids: Tensor
    """[local_batch] int64 on the target device."""
    valid: Tensor
    """[local_batch] bool on the target device."""
    position: int
    """Stream position of the first slot."""
    is_filler: bool
    """Masked as a whole: fills the gap where micro-batches do not divide by ranks."""


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of one global batch."""

    step_position: int
    """Stream position of the global batch's first slot."""
    micro_batches: list[MicroBatch]
    """This rank's; the same number on every rank."""
    num_micro_batches_global: int
    """Real ones in the global batch."""
    num_top_ups: int
    """Slots of the global batch that repeat a photo to fill a person's group."""
    wait_s: float
    """How long the consumer waited for this batch."""
    bad_samples: list[BadSample]
    """Masked in this batch on this rank."""


_Assembled = tuple[MicroBatch, list[BadSample]]
_Bad = dict[int, BadSample]
_Pending = list[Future[_Assembled]]


class Loader:
    """Iterates over one rank's batches at positions start, start + global_batch, … below `stop`.

    Every rank builds its own with the same arguments but `rank` and `device`; there is no communication. Each
    iteration begins at `start` again.

    Args:
        split: the samples.
        seed: of order and augmentation.
        global_batch: slots of a step over all ranks.
        local_batch: slots of a micro-batch; divides `global_batch`.
        rank: this rank, 0 … world_size - 1.
        world_size: number of ranks.
        start: stream position of the first step: the number of samples consumed so far.
        stop: stream position that no step begins at or after.
        decoder: who decodes.
        augment: operations on the samples, in order.
        device: where micro-batches are wanted.
        crop_px: side of the data set's square crops.
        order: which row stands at which position; None for the plain order of the split and the seed.
        prefetch_steps: how many steps are in the making while one is consumed.
        num_threads: threads that read and decode.

    Raises:
        UserError: batch sizes that do not fit each other or the split, or a decoder whose device is missing.
    """

    def __init__(
        self,
        split: SplitIndex,
        *,
        seed: int,
        global_batch: int,
        local_batch: int,
        rank: int,
        world_size: int,
        start: int,
        stop: int,
        decoder: CpuDecoder | DaliDecoder,
        augment: Sequence[Augmentation],
        device: torch.device,
        crop_px: int,
        order: Order | None = None,
        prefetch_steps: int = 2,
        num_threads: int = 2,
    ) -> None:
        self._order = PlainOrder.create(split.digest, len(split), seed) if order is None else order
        check_batches(self._order.num_rows, global_batch, local_batch)
        if device.type == "cuda" and device.index is None:
            # Threads of our own begin with device 0 as their current one, whatever this thread has chosen.
            device = torch.device("cuda", torch.cuda.current_device())
        self._split = split
        self._seed = seed
        self._global_batch, self._local_batch = global_batch, local_batch
        self._rank, self._world_size = rank, world_size
        self._start, self._stop = start, stop
        self._augment, self._crop_px = augment, crop_px
        self._device = device
        self._prefetch_steps = prefetch_steps
        self._times = StageTimes()
        # few samples at a time share a micro-batch among the threads, many make hand-over cheap
        self._chunk = max(8, min(64, local_batch // (2 * num_threads)))
        self._decoder: Decoder = make_decoder(
            decoder,
            augment,
            crop_px=crop_px,
            local_batch=local_batch,
            device=device,
            num_threads=num_threads,
            times=self._times,
        )
        self._reader = Reader(split, self._times)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="loader-read")
        self._assembly = ThreadPoolExecutor(1, thread_name_prefix="loader-assemble")
        self._closed = False

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield the steps in order; what a thread raises is raised here."""
        positions = iter(range(self._start, self._stop, self._global_batch))
        pending: deque[tuple[StepPlan, _Pending]] = deque()
        try:
            while True:
                while len(pending) <= self._prefetch_steps and (position := next(positions, None)) is not None:
                    pending.append(self._submit(position))
                if not pending:
                    return
                yield self._collect(*pending.popleft())
        finally:
            for _, futures in pending:
                for future in futures:
                    future.cancel()

    @property
    def stage_times(self) -> dict[str, float]:
        """Seconds by stage so far, summed over threads: see `pipeline.data.stage_times`."""
        return self._times.seconds()

    @property
    def store_stats(self) -> StoreStats:
        """What a remote store was asked for by this rank so far."""
        return self._reader.stats

    def close(self) -> None:
        """Stop the threads and close the files; the work in hand is finished, what waits is dropped."""
        if self._closed:
            return
        self._closed = True
        self._reader.stop()  # a store that does not answer would keep the threads for minutes
        # The pool first: an assembly that waits for a dropped chunk is woken by its cancellation.
        self._pool.shutdown(cancel_futures=True)
        self._assembly.shutdown(cancel_futures=True)
        self._decoder.close()
        self._reader.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, position: int) -> tuple[StepPlan, _Pending]:
        """Hand a step's work to the threads."""
        with self._times.stage(PLAN):
            plan = plan_step(self._order, position, self._global_batch, self._local_batch, self._rank, self._world_size)
        futures: _Pending = []
        for number, micro_batch in enumerate(plan.micro_batches):
            if micro_batch.is_filler and number > 0:
                break  # a copy of the one before, made when the step is collected
            futures.append(self._submit_micro_batch(micro_batch))
        return plan, futures

    def _submit_micro_batch(self, plan: MicroBatchPlan) -> Future[_Assembled]:
        positions = np.arange(plan.position, plan.position + self._local_batch)
        with self._times.stage(PLAN):
            steps = draw_steps(self._augment, self._seed, positions, self._crop_px)
        memory = self._decoder.begin(self._local_batch)
        slots, reads = self._reader.by_place(plan.rows).tolist(), self._reader.begin(plan.rows)
        chunks = [
            self._pool.submit(self._prepare, plan.rows, reads, memory, steps, slots[first : first + self._chunk])
            for first in range(0, self._local_batch, self._chunk)
        ]
        return self._assembly.submit(self._assemble, plan, memory, steps, chunks)

    def _prepare(
        self, rows: npt.NDArray[np.int64], reads: SampleReads, memory: Any, steps: Sequence[Step], slots: list[int]
    ) -> _Bad:
        """Read and prepare some slots of a micro-batch; gives those that have no sample."""
        bad_samples: _Bad = {}
        contents: dict[int, bytes | bytearray] = {}
        for slot, content in zip(slots, reads.take(slots), strict=True):
            if isinstance(content, BadSample):
                bad_samples[slot] = content
            else:
                contents[slot] = content
        for slot, failure in self._decoder.prepare(memory, contents, steps).items():
            bad_samples[slot] = self._reader.bad_sample(int(rows[slot]), failure.reason, failure.detail)
        return bad_samples

    def _assemble(
        self, plan: MicroBatchPlan, memory: Any, steps: Sequence[Step], chunks: list[Future[_Bad]]
    ) -> _Assembled:
        bad_samples = {slot: bad for chunk in chunks for slot, bad in chunk.result().items()}
        is_filled = [slot not in bad_samples for slot in range(self._local_batch)]
        images, failures = self._decoder.assemble(memory, is_filled, steps)
        for slot, failure in failures.items():
            bad_samples[slot] = self._reader.bad_sample(int(plan.rows[slot]), failure.reason, failure.detail)
        valid = np.full(self._local_batch, not plan.is_filler)
        valid[list(bad_samples)] = False
        labels = np.where(valid, self._split.label[plan.rows], -1).astype(np.int64)
        micro_batch = MicroBatch(
            images=images,
            labels=torch.from_numpy(labels).to(self._device),
            sample_ids=torch.from_numpy(self._split.sample_id[plan.rows]).to(self._device),
            valid=torch.from_numpy(valid).to(self._device),
            position=plan.position,
            is_filler=plan.is_filler,
        )
        # A filler's samples are another rank's to report.
        return micro_batch, [] if plan.is_filler else [bad_samples[slot] for slot in sorted(bad_samples)]

    def _collect(self, plan: StepPlan, futures: _Pending) -> StepBatch:
        """Wait for a step's micro-batches and add the fillers."""
        began = time.perf_counter()
        try:
            results = [future.result() for future in futures]
        except Exception as error:
            error.add_note(f"in a loader thread of rank {self._rank}, for the step at stream position {plan.position}")
            raise
        wait_s = time.perf_counter() - began
        micro_batches = [micro_batch for micro_batch, _ in results]
        for filler in plan.micro_batches[len(results) :]:
            last = micro_batches[-1]
            masked = replace(last, labels=torch.full_like(last.labels, -1), valid=torch.zeros_like(last.valid))
            micro_batches.append(replace(masked, position=filler.position, is_filler=True))
        return StepBatch(
            step_position=plan.position,
            micro_batches=micro_batches,
            num_micro_batches_global=plan.num_micro_batches_global,
            num_top_ups=plan.num_top_ups,
            wait_s=wait_s,
            bad_samples=[bad for _, found in results for bad in found],
        )
