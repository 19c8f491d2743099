"""From a rank's micro-batches to gradients: a loss that adds up micro-batch by micro-batch, or one that needs them all.

The loss is a mean over the valid slots of the *global* batch. A head multiplies the embeddings' gradient by the number
of ranks, because the backend averages over ranks what has to be summed.

A loss that needs the whole global batch (mining, statistics over the batch) gets it without holding the whole batch's
activations, by gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", arXiv:2101.06983): embed all micro-batches without a graph, differentiate the loss with respect to the
embeddings, then embed each micro-batch again and backpropagate its part of that gradient. It costs a second forward
pass and gives the gradient of one big batch exactly, batch norm over each micro-batch and dropout included: both passes
normalise over the same groups and draw the same masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.data.counter import derive_keys
from pipeline.data.loader import MicroBatch, StepBatch
from pipeline.engine.backend import Backend
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.gradient_marks import wait_for_ranks
from pipeline.model.head import Head, HeadOutput
from pipeline.progress import PROGRESS, Stage


class GradientPass:
    """Forward and backward of one step on one rank; all ranks make the same calls.

    Args:
        backend: owner of the backbone.
        statistics: batch norm's, of the same network.
        head: the loss.
        teacher: a frozen network whose embeddings the head asks for, in all steps or in some, or None.
        seed: of the dropout masks.
    """

    def __init__(
        self, backend: Backend, statistics: RunningStatistics, head: Head, teacher: nn.Module | None, seed: int
    ) -> None:
        self._backend, self._statistics, self._head, self._teacher = backend, statistics, head, teacher
        self._seed = seed
        self.finite: list[Tensor] = []
        """[B] bool for each micro-batch embedded in the step done last: whose embeddings are finite."""

    def backward(
        self, batch: StepBatch, num_valid: Tensor, step: int, epoch: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave the gradients of a step in the parameters. Collective on all ranks.

        Batch norm's statistics are not set yet: `RunningStatistics.finish_step` or `discard_step` is due. Embeddings
        that are not finite on any rank never reach the head: the step ends there, and its loss is NaN on all ranks.

        Args:
            batch: this rank's micro-batches, the same number on all ranks.
            num_valid: [micro-batches] float32, valid slots over all ranks.
            step: optimizer updates done so far.
            epoch: passes over the data done so far.

        Returns:
            The loss and the metrics, detached scalars, means over the valid slots of all ranks.
        """
        micros = batch.micro_batches
        self.finite = []
        labels, valid = torch.cat([m.labels for m in micros]), torch.cat([m.valid for m in micros])
        self._head.begin_step(labels, valid, step, epoch)
        if self._head.needs_whole_batch and len(micros) > 1:
            output = self._whole_batch(micros, labels, valid, step)
        else:
            output = self._by_micro_batch(micros, num_valid, step)
        return output.loss, output.metrics

    def _by_micro_batch(self, micros: list[MicroBatch], num_valid: Tensor, step: int) -> HeadOutput:
        total = num_valid.sum()
        loss = torch.zeros((), device=total.device)
        metrics: dict[str, Tensor] = {}
        for number, micro in enumerate(micros):
            is_last = number == len(micros) - 1
            with self._backend.accumulate(is_last), wait_for_ranks(self._backend.model, is_last):
                embeddings = self._embed(micro)
                if not self._all_finite([embeddings]):
                    # what waits for a backward pass, as DDP does, is to have one
                    self._backend.backward(embeddings, torch.zeros_like(embeddings))
                    return HeadOutput(torch.full_like(loss, torch.nan), {})
                leaf = embeddings.detach().requires_grad_()
                PROGRESS.enter(Stage.HEAD)
                out = self._head(
                    leaf,
                    micro.labels,
                    micro.sample_ids,
                    micro.valid,
                    step,
                    num_valid=total,
                    teacher_embeddings=self._teach(micro),
                )
                out.loss.backward()
                assert leaf.grad is not None
                PROGRESS.enter(Stage.BACKWARD)
                self._backend.backward(embeddings, leaf.grad)
                PROGRESS.enter(Stage.OTHER)
            loss += out.loss.detach()
            share = num_valid[number] / total.clamp(min=1)
            for name, value in out.metrics.items():
                metrics[name] = metrics.get(name, torch.zeros((), device=total.device)) + share * value
        return HeadOutput(loss, metrics)

    def _whole_batch(self, micros: list[MicroBatch], labels: Tensor, valid: Tensor, step: int) -> HeadOutput:
        with torch.no_grad():
            embedded = [self._embed(micro) for micro in micros]
        if not self._all_finite(embedded):
            return HeadOutput(torch.full((), torch.nan, device=labels.device), {})
        taught = [t for t in map(self._teach, micros) if t is not None]
        leaf = torch.cat(embedded).requires_grad_()
        PROGRESS.enter(Stage.HEAD)
        out = self._head(
            leaf,
            labels,
            torch.cat([m.sample_ids for m in micros]),
            valid,
            step,
            teacher_embeddings=torch.cat(taught) if taught else None,
        )
        out.loss.backward()
        assert leaf.grad is not None
        for number, (micro, gradient) in enumerate(zip(micros, leaf.grad.split(len(micros[0].labels)), strict=True)):
            is_last = number == len(micros) - 1
            with self._backend.accumulate(is_last), wait_for_ranks(self._backend.model, is_last):
                # the statistics have moved already
                embeddings = self._embed(micro, is_repeated=True)
                PROGRESS.enter(Stage.BACKWARD)
                self._backend.backward(embeddings, gradient)
        PROGRESS.enter(Stage.OTHER)
        return HeadOutput(out.loss.detach(), out.metrics)

    def _embed(self, micro: MicroBatch, is_repeated: bool = False) -> Tensor:
        PROGRESS.enter(Stage.FORWARD)
        # dropout belongs to the stream position, so it is the same for any number of ranks, after any resume, and in
        # both passes over a micro-batch
        torch.manual_seed(int(derive_keys(1, "dropout", self._seed, micro.position)[0]) >> 1)
        with self._statistics.micro_batch(micro.is_filler, is_repeated):
            return self._backend.forward(micro.images)

    def _all_finite(self, embedded: list[Tensor]) -> bool:
        """Whether these embeddings and those of all other ranks are finite. Collective on all ranks."""
        finite = [embeddings.detach().isfinite().all(dim=1) for embeddings in embedded]
        self.finite += finite
        return dist.all_ranks_agree(bool(torch.cat(finite).all()))

    def _teach(self, micro: MicroBatch) -> Tensor | None:
        if self._teacher is None or not self._head.needs_teacher:
            return None
        with torch.no_grad():
            return self._teacher(micro.images)
