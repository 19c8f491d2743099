"""The margin softmax head: class centres split over ranks by rows, logits formed block by block.

The layout is that of Partial FC (An et al. 2020, arXiv:2010.05222): embeddings travel, class centres stay, and a step
may draw a share of the negatives. See docs/head.md for the mathematics, the memory and what is communicated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.model.active_classes import ActiveClasses, choose_classes
from pipeline.model.block_size import block_rows
from pipeline.model.class_blocks import MIN_NORM, WalkOptions
from pipeline.model.class_walk import target_length, target_product, walk_classes
from pipeline.model.global_batch import Slots, gather_slots, without_masked
from pipeline.model.head import ActiveRows, Head, HeadOutput, register_head
from pipeline.model.huge_pages import in_huge_pages
from pipeline.model.margins.base import GlobalBatch, Margin, NegativeTransform, build_margin

INITIAL_STD = 0.01
KEEP_BYTES_CPU = 2**29
KEEP_BYTES_GPU = 2**30
"""Memory for logits that are kept for the backward pass, unless the configuration says otherwise."""

_CENTRES_KEY = 0x43454E54524553
_INITIAL_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class HeadOptions:
    """What a margin softmax head does beside its margin; the fields are those of `MarginSoftmaxConfig`."""

    sample_rate: float = 1.0
    num_subcentres: int = 1
    negative_filter: float | None = None
    label_smoothing: float = 0.0
    frozen_classes: int = 0
    products: Literal["fp32", "bf16"] = "fp32"
    block_bytes: int | None = None
    keep_bytes: int | None = None


def initial_centres(seed: int, start: int, stop: int, embedding_dim: int) -> Tensor:
    """Initial class centres `start` to `stop`: [stop − start, D] float32, normal with standard deviation 0.01.

    Row j, column k is a function of (seed, j, k) alone: it has its own place in a counter-based generator's stream
    (Philox, Salmon et al. 2011), so any rank makes just its rows.
    """
    centres = in_huge_pages(torch.empty(stop - start, embedding_dim))
    counters_per_row = -(-embedding_dim // 4)
    key = np.array([seed, _CENTRES_KEY], dtype=np.uint64)
    for first in range(start, stop, _INITIAL_ROWS_AT_ONCE):
        last = min(first + _INITIAL_ROWS_AT_ONCE, stop)
        # a step of Philox's counter gives four 64-bit words
        generator = np.random.Philox(key=key, counter=first * counters_per_row)
        words = generator.random_raw(4 * counters_per_row * (last - first))
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = uniform.reshape(last - first, 2, -1).transpose(1, 0, 2)
        radius = np.sqrt(-2 * np.log(radius))
        angle = 2 * np.pi * angle
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :embedding_dim]
        centres[first - start : last - start] = torch.from_numpy(INITIAL_STD * normal)
    return centres


class MarginSoftmaxHead(Head):
    """Softmax with a margin over class centres of which each rank holds a partition.

    Computes in float32 whatever the embeddings' type and whatever autocast says; after `.double()`, in float64.
    Class centres are [classes, D], with K sub-centres [classes, K, D].

    With a sample rate below 1, or frozen classes, `begin_step` has to precede the calls of a step.

    Args:
        num_classes: C, over all ranks.
        embedding_dim: D.
        margin: see `pipeline.model.margins`.
        seed: of the initial class centres and of all draws.
        options: see there.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, margin: Margin, seed: int, options: HeadOptions | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.margin = margin
        self.options = options or HeadOptions()
        self.needs_whole_batch = margin.needs_whole_batch
        self._seed = seed
        self.first_class, end = dist.partition(num_classes, dist.rank(), dist.world_size())
        num_own, k = end - self.first_class, self.options.num_subcentres
        centres = initial_centres(seed, self.first_class * k, end * k, embedding_dim)
        self.class_centres = nn.Parameter(centres if k == 1 else centres.view(num_own, k, embedding_dim))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(num_own)) if margin.has_bias else None
        self._active: ActiveClasses | None = None

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        return {name: (parameter, self.num_classes) for name, parameter in self._class_parameters().items()}

    def row_sparse(self) -> frozenset[str]:
        return frozenset(self._class_parameters()) if self._is_row_sparse else frozenset()

    def active_rows(self) -> dict[str, ActiveRows]:
        return {} if self._active is None else self._active.rows

    def begin_step(self, labels: Tensor, valid: Tensor, step: int, epoch: float) -> None:
        if self._is_row_sparse:
            gathered = dist.all_gather_rows(torch.stack([labels, valid.long()], dim=1))
            positives = gathered[:, 0][gathered[:, 1].bool()] - self.first_class
            options = self.options
            self._active = choose_classes(
                self._class_parameters(),
                positives,
                self.first_class,
                options.sample_rate,
                options.frozen_classes,
                self._seed,
                step,
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_ids: Tensor,
        valid: Tensor,
        step: int,
        *,
        num_valid: Tensor | None = None,
        teacher_embeddings: Tensor | None = None,
    ) -> HeadOutput:
        with torch.autocast(embeddings.device.type, enabled=False):
            slots = gather_slots(labels, sample_ids, valid, self.num_classes)
            embeddings = dist.all_gather_rows(without_masked(embeddings, valid, self.class_centres.dtype))
            return self._global_loss(embeddings, slots, step, num_valid)

    def _global_loss(self, embeddings: Tensor, slots: Slots, step: int, num_valid: Tensor | None) -> HeadOutput:
        """From the batch of all ranks [N, ...] to the loss: the same work, with the same result, on every rank."""
        margin = self.margin
        centres, bias, columns = self._classes(slots.labels)
        norm = torch.linalg.vector_norm(embeddings, dim=1)
        centre_norm = target_length(centres, columns) if margin.needs_centre_norm else None
        batch = GlobalBatch(norm, slots.sample_ids, slots.valid, step, self._seed, centre_norm)

        queries, scale = self._queries(embeddings, norm)
        options = self._walk_options(queries)
        target = target_product(queries, centres, bias, columns, options)
        if margin.has_statistics and self.training and bool(slots.num_valid):
            self._observe(queries, centres, columns, target, scale, batch, options)
            queries, scale = self._queries(embeddings, norm)  # it may have moved the scale
            target = target_product(queries, centres, bias, columns, options) if margin.needs_class_pass else target
        similarity = (target / scale).detach()
        options = replace(options, transform=self._transform(similarity, scale, batch))
        shift = margin.negative_bias()
        if shift is not None:
            # each rank's walk has the gradient of its own classes' part
            num_walked = len(centres) // self.options.num_subcentres
            bias = dist.times_world_size_in_backward(shift).to(centres.dtype).expand(num_walked)
            options = replace(options, is_bias_on_target=False)
        walked = walk_classes(queries, centres, bias, columns, target, options)
        target_logit = margin.target_logit(walked.target / scale, batch)
        losses = margin.sample_loss(target_logit, walked.reduced, batch)
        if walked.logit_sum is not None and walked.num_summed is not None:
            # (1 − ε)·CE + ε·mean of −log p_j over the classes differs from CE by ε·(z_y − mean of z_j)
            mean_logit = (walked.logit_sum + target_logit) / (walked.num_summed + 1)
            losses = losses + self.options.label_smoothing * (target_logit - mean_logit)
        count = slots.num_valid.clamp(min=1)
        loss = torch.where(slots.valid, losses, 0).sum() / (count if num_valid is None else num_valid.clamp(min=1))
        greatest = walked.greatest if shift is None else walked.greatest - shift.detach()
        figures = {
            "accuracy": (target > greatest).to(target.dtype),
            "target_cosine" if margin.is_cosine else "target_logit": similarity,
            # a single class has no negatives: −inf would spoil the sums that reports are made of
            "negative_sum" if margin.sums_softplus else "negative_lse": walked.reduced.masked_fill(
                walked.reduced == -torch.inf, 0
            ),
            "embedding_norm": norm,
            **margin.metrics(similarity, batch),
        }
        metrics = {name: torch.where(slots.valid, figure.detach(), 0).sum() / count for name, figure in figures.items()}
        return HeadOutput(loss, metrics)

    def _queries(self, embeddings: Tensor, norm: Tensor) -> tuple[Tensor, Tensor | float]:
        """What meets the class centres, and the factor from similarities to logits."""
        scale = self.margin.logit_scale(norm)
        if not self.margin.is_cosine:
            return embeddings, scale
        return embeddings * (scale / norm.clamp(min=MIN_NORM))[:, None], scale

    @torch.no_grad()
    def _observe(
        self,
        queries: Tensor,
        centres: Tensor,
        columns: Tensor,
        target: Tensor,
        scale: Tensor | float,
        batch: GlobalBatch,
        options: WalkOptions,
    ) -> None:
        """Let the margin move its statistics. Collective where that takes a pass over the classes."""
        self.margin.observe(target / scale, batch)
        if self.margin.needs_class_pass:
            walked = walk_classes(
                queries, centres, None, columns, target, replace(options, keep_bytes=0, sums_logits=False)
            )
            self.margin.observe_classes(target / scale, walked.reduced, self.options.sample_rate, batch)

    def _transform(self, similarity: Tensor, scale: Tensor | float, batch: GlobalBatch) -> NegativeTransform | None:
        transform = self.margin.negative_transform(similarity, batch)
        threshold = self.options.negative_filter
        if threshold is None:
            return transform
        bound = threshold * scale.detach().view(-1, 1) if isinstance(scale, Tensor) else threshold * scale
        if (shift := self.margin.negative_bias()) is not None:
            bound = bound + shift.detach()

        def without_likely_positives(logits: Tensor) -> Tensor:
            values = logits if transform is None else transform(logits)
            return values.masked_fill(logits > bound, -torch.inf)

        return without_likely_positives

    def _classes(self, labels: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The classes of this rank that take part: rows [classes · K, D], bias, and each label's place among them [N],
        −1 where another rank has it."""
        columns = labels - self.first_class
        parameters: dict[str, Tensor] = dict(self._class_parameters())
        if self._is_row_sparse:
            if self._active is None:
                raise RuntimeError("begin_step has to precede the first call")
            columns = self._active.places(columns)
            parameters = {name: rows.leaf for name, rows in self._active.rows.items()}
        else:
            columns = torch.where((columns >= 0) & (columns < len(self.class_centres)), columns, -1)
        centres = parameters["class_centres"]
        return centres if centres.ndim == 2 else centres.flatten(0, 1), parameters.get("bias"), columns

    def _class_parameters(self) -> dict[str, nn.Parameter]:
        return {"class_centres": self.class_centres} | ({} if self.bias is None else {"bias": self.bias})

    @property
    def _is_row_sparse(self) -> bool:
        return self.options.sample_rate < 1 or self.options.frozen_classes > 0

    def _walk_options(self, queries: Tensor) -> WalkOptions:
        options, is_cpu = self.options, queries.device.type == "cpu"
        keep_bytes = options.keep_bytes
        if keep_bytes is None:
            keep_bytes = KEEP_BYTES_CPU if is_cpu else KEEP_BYTES_GPU
        # of a class: its rows, and their logits
        num_columns = options.num_subcentres * sum(queries.shape)
        return WalkOptions(
            normalise=self.margin.is_cosine,
            block_rows=block_rows(num_columns, queries, options.block_bytes),
            keep_bytes=keep_bytes,
            reduction="softplus_sum" if self.margin.sums_softplus else "log_sum_exp",
            sums_logits=options.label_smoothing > 0,
            num_subcentres=options.num_subcentres,
            is_bf16=options.products == "bf16",
        )


@register_head("margin_softmax")
def build_margin_softmax(
    config: MarginSoftmaxConfig, num_classes: int, embedding_dim: int, seed: int
) -> MarginSoftmaxHead:
    """Build the head from its configuration section."""
    if config.frozen_classes >= num_classes:
        raise UserError("head.frozen_classes", str(config.frozen_classes), f"fewer than the {num_classes} classes")
    options = HeadOptions(**config.model_dump(exclude={"kind", "margin"}))
    return MarginSoftmaxHead(num_classes, embedding_dim, build_margin(config.margin, num_classes), seed, options)
