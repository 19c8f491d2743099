"""Peers for the head's benchmark: Partial FC as published, with the logits laid out as a whole.

Written from the papers (An et al. 2020, arXiv:2010.05222, section 3; ArcFace's margin, Deng et al. 2019, equation 3),
float32 throughout. Both peers hold the same rows as our head (`dist.partition`) and compute the same loss. The naive
one is what the formulas say, in autograd: cosines, sines, cos(θ + m) and a one-hot mask over the whole matrix. The
careful one touches targets by index, and has a softmax whose forward and backward pass work in the logits' own memory,
with a constant margin (a straight-through gradient), as the published implementation has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import dist
from pipeline.model.partial_fc import initial_centres


class Peer(nn.Module):
    """A rank's part of a dense or sampled margin softmax, with its dense or row-wise SGD with momentum.

    Args:
        num_classes, embedding_dim, scale, margin, seed: as for our head.
        sample_rate: share of a rank's rows that a step uses, positives always among them; 1: all.
        in_place: the careful variant, with a hand-written softmax that reuses the logits' memory.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float,
        margin: float,
        seed: int,
        sample_rate: float,
        in_place: bool,
    ) -> None:
        super().__init__()
        self.scale, self.margin, self.sample_rate, self.in_place = scale, margin, sample_rate, in_place
        self.first_class, end = dist.partition(num_classes, dist.rank(), dist.world_size())
        self.centres = nn.Parameter(initial_centres(seed, self.first_class, end, embedding_dim))
        self.momentum = torch.zeros_like(self.centres.detach())
        self.generator = torch.Generator().manual_seed(seed + dist.rank())

    def step(self, embeddings: Tensor, labels: Tensor, lr: float, momentum: float, weight_decay: float) -> Tensor:
        """Loss, gradients and the centres' update for one global batch; collective. Gives the loss."""
        embeddings, labels = dist.all_gather_rows(embeddings), dist.all_gather_rows(labels)
        columns = labels - self.first_class
        columns = torch.where((columns >= 0) & (columns < len(self.centres)), columns, -1)
        if self.sample_rate < 1:
            return self._sampled(embeddings, columns, lr, momentum, weight_decay)
        loss = self._loss(embeddings, self.centres, columns)
        loss.backward()
        optimizer = torch.optim.SGD([self.centres], lr=lr, momentum=momentum, weight_decay=weight_decay)
        optimizer.state[self.centres]["momentum_buffer"] = self.momentum
        optimizer.step()
        self.centres.grad = None
        return loss.detach()

    def _sampled(self, embeddings: Tensor, columns: Tensor, lr: float, momentum: float, weight_decay: float) -> Tensor:
        positive = columns[columns >= 0].unique()
        num_sampled = max(len(positive), int(self.sample_rate * len(self.centres)))
        draw = torch.rand(len(self.centres), generator=self.generator)
        draw[positive] = 2.0
        index = draw.topk(num_sampled)[1].sort()[0]
        own = columns >= 0
        columns = columns.clone()
        columns[own] = torch.searchsorted(index, columns[own])
        rows = nn.Parameter(self.centres.detach()[index])
        loss = self._loss(embeddings, rows, columns)
        loss.backward()
        optimizer = torch.optim.SGD([rows], lr=lr, momentum=momentum, weight_decay=weight_decay)
        optimizer.state[rows]["momentum_buffer"] = self.momentum[index]
        optimizer.step()
        with torch.no_grad():
            self.centres[index] = rows
            self.momentum[index] = optimizer.state[rows]["momentum_buffer"]
        return loss.detach()

    def _loss(self, embeddings: Tensor, centres: Tensor, columns: Tensor) -> Tensor:
        cosine = functional.linear(functional.normalize(embeddings), functional.normalize(centres))
        own = torch.nonzero(columns >= 0).squeeze(1)
        if self.in_place:
            with torch.no_grad():
                target = cosine[own, columns[own]]
                cosine.data[own, columns[own]] = self._with_margin(target, (1 - target**2).clamp(min=0).sqrt())
                cosine.data.mul_(self.scale)
            # the scale's derivative is put back by the hand-written backward pass
            return _InPlaceCrossEntropy.apply(cosine, columns, self.scale)
        phi = self._with_margin(cosine, (1 - cosine**2).clamp(min=1e-12).sqrt())
        is_target = torch.zeros_like(cosine)
        is_target[own, columns[own]] = 1
        logits = self.scale * (is_target * phi + (1 - is_target) * cosine)
        greatest = dist.all_reduce_max(logits.detach().amax(1, keepdim=True))
        shifted = logits - greatest
        target = (is_target * shifted).sum(1)
        return (_joined(shifted.exp().sum(1)).log() - _joined(target)).mean()

    def _with_margin(self, cosine: Tensor, sine: Tensor) -> Tensor:
        phi = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        return torch.where(cosine > -math.cos(self.margin), phi, cosine - self.margin * math.sin(self.margin))


def _joined(part: Tensor) -> Tensor:
    """Sum over ranks; the gradient is that of this rank's part, whose sum over ranks is the whole one."""
    return part + (dist.all_reduce_sum(part.detach().clone()) - part.detach())


class _InPlaceCrossEntropy(torch.autograd.Function):
    """Softmax over all ranks' columns in the logits' own memory; the backward pass turns it into the gradient there."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, columns: Tensor, scale: float) -> Tensor:
        logits.sub_(dist.all_reduce_max(logits.amax(1, keepdim=True))).exp_()
        total = dist.all_reduce_sum(logits.sum(1, keepdim=True))
        logits.div_(total)
        own = torch.nonzero(columns >= 0).squeeze(1)
        target = logits.new_zeros(len(logits))
        target[own] = logits[own, columns[own]]
        dist.all_reduce_sum(target)
        ctx.save_for_backward(logits, columns)
        ctx.scale = scale
        return target.clamp_min(1e-30).log().neg().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        probability, columns = ctx.saved_tensors
        own = torch.nonzero(columns >= 0).squeeze(1)
        probability[own, columns[own]] -= 1
        probability.mul_(gradients[0] * ctx.scale / len(probability))
        return probability, None, None
