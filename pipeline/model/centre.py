"""Centre loss with class centres split over ranks by rows, as the margin softmax splits its own.

Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", equations 2 to 4. The centres
are no parameters: they follow their samples by a rule of their own, after the loss of a step has been computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import dist
from pipeline.config.heads import CentreConfig
from pipeline.model.global_batch import gather_slots, without_masked
from pipeline.model.head import Head, HeadOutput, register_head


class CentreHead(Head):
    """λ/2 · mean over the valid slots of ‖x − c_y‖². In training mode a call then moves the centres of its classes:

        c_j ← c_j − α · Σ_i δ(y_i = j)(c_j − x_i) / (1 + Σ_i δ(y_i = j))

    The rule divides by a class's count in the global batch, so it needs all of it at once. A centre starts at zero.
    Distances are between embeddings as they are, as in the paper: beside plain softmax, lengths carry information. A
    cosine head leaves lengths free, and they would shrink towards zero together with this loss; `normalise` is for
    those (Ranjan et al. 2017, arXiv:1703.09507, combine centre loss with features of one length).

    Computes in float32 whatever the embeddings' type and whatever autocast says; after `.double()`, in float64.

    Args:
        num_classes: C, over all ranks.
        embedding_dim: D.
        strength: λ.
        centre_rate: α.
        normalise: bring embeddings to unit length first; the centres, being means, stay inside the unit sphere.
    """

    needs_whole_batch = True
    centres: Tensor
    """[rows, D], this rank's."""

    def __init__(
        self, num_classes: int, embedding_dim: int, strength: float, centre_rate: float, normalise: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strength, self.centre_rate, self.normalise = strength, centre_rate, normalise
        self.first_class, end = dist.partition(num_classes, dist.rank(), dist.world_size())
        self.register_buffer("centres", torch.zeros(end - self.first_class, embedding_dim))

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        return {"centres": (self.centres, self.num_classes)}

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
            embeddings = dist.all_gather_rows(without_masked(embeddings, valid, self.centres.dtype))
            if self.normalise:
                embeddings = functional.normalize(embeddings)
            rows = slots.labels - self.first_class
            own = (slots.valid & (rows >= 0) & (rows < len(self.centres))).nonzero().squeeze(1)
            rows = rows[own]
            difference = embeddings[own] - self.centres[rows]
            squared = difference.square().sum(1)
            sums = dist.sum_over_ranks(torch.stack([squared.sum(), squared.detach().sqrt().sum()]))
            loss = self.strength / 2 * sums[0] / (slots.num_valid if num_valid is None else num_valid).clamp(min=1)
            if self.training:
                self._move_centres(rows, difference.detach())
            return HeadOutput(loss, {"centre_distance": sums[1].detach() / slots.num_valid.clamp(min=1)})

    @torch.no_grad()
    def _move_centres(self, rows: Tensor, difference: Tensor) -> None:
        """Apply the rule to the centres named in `rows` [n], `difference` [n, D] being x − c of each sample."""
        moved, positions, counts = rows.unique(return_inverse=True, return_counts=True)
        sums = difference.new_zeros(len(moved), difference.shape[1]).index_add_(0, positions, difference)
        self.centres[moved] += self.centre_rate * sums / (1 + counts)[:, None]


@register_head("centre")
def build_centre(config: CentreConfig, num_classes: int, embedding_dim: int, seed: int) -> CentreHead:
    """Build the head from its configuration section; no initial value is drawn."""
    return CentreHead(num_classes, embedding_dim, config.strength, config.centre_rate, config.normalise)
