"""How step time and memory grow with GPUs and classes: counted operations and bytes over stated rates.

    found = predict(Workload(num_classes=10_000_000, num_ranks=64, local_batch=128, …), MACHINES["H100"], Shares())

Where `pipeline.engine.estimate` measures a rank of a run on this machine, this is for machines that are not here.
Nothing is measured; docs/scaling.md has the formulas, how they compare with measurements, and what they leave out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import dist
from pipeline.config.errors import UserError
from pipeline.model.block_size import BYTES_GPU
from pipeline.model.partial_fc import KEEP_BYTES_GPU

FLOAT_BYTES, LABEL_BYTES = 4, 8
BACKBONE_PASSES = 8
"""How often a step goes through memory of the backbone's size: the gradient's length 1, its clipping 2, SGD with
momentum 5."""
ROW_PASSES = 12
"""Likewise of the class centres that take part: lengths, three or four products and the gradient 6, its length 1, SGD
with momentum 5."""
NUM_REDUCTIONS, NUM_GATHERS = 7, 3
"""Collectives of a step with one micro-batch: all-reduces (target logits, greatest logits, sums over classes, finite
embeddings, running statistics, the head's gradient norm, counts); gathers and scatters (labels, embeddings, embeddings'
gradients)."""
BUCKET_BYTES = 25 * 2**20
"""Of DistributedDataParallel's all-reduces."""


@dataclass(frozen=True)
class Machine:
    """A kind of GPU in nodes; rates are the makers' peaks."""

    backbone_flops: float
    """FLOP/s of the backbone's products, which are of 16-bit numbers."""
    head_flops: float
    """FLOP/s of the head's products, which are of float32 numbers."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Of a GPU to the others of its node, one way."""
    network_bytes_per_s: float
    """Of a GPU's share of its node's network adapters, one way."""
    memory_bytes: float = math.inf
    gpus_per_node: int = 8


MACHINES = {
    "V100": Machine(125e12, 15.7e12, 0.90e12, 150e9, 6.25e9, 32 * 2**30),
    "A100": Machine(312e12, 19.5e12, 2.04e12, 300e9, 25e9, 80 * 2**30),
    "H100": Machine(989e12, 67e12, 3.35e12, 450e9, 50e9, 80 * 2**30),
}
"""Data sheets of the SXM modules; the network is that of NVIDIA's DGX systems, 4, 8 and 8 adapters of 100, 200 and 400
Gbit/s for 8 GPUs."""


@dataclass(frozen=True)
class Shares:
    """What of the peaks is reached. The defaults are what fits InsightFace's table of Partial FC on 8 V100."""

    backbone: float = 0.196
    head: float = 0.219
    hop_s: float = 5e-6
    """Latency from a GPU to the next, assumed."""


@dataclass(frozen=True)
class Workload:
    """What a rank does in a step of one micro-batch."""

    num_classes: int
    """C, over all ranks."""
    num_ranks: int
    """R."""
    local_batch: int
    """B, photos of a rank."""
    multiply_adds: int = 0
    """Of a photo in the backbone's forward pass; this and the two below as `BackboneCost` has them."""
    num_parameters: int = 0
    activation_bytes: int = 0
    """Of a photo; half of `BackboneCost`'s in 16 bit."""
    num_statistics: int = 0
    """Running means and variances."""
    embedding_dim: int = 512
    """D."""
    sample_rate: float = 1.0
    keep_bytes: int = KEEP_BYTES_GPU
    """For logits that are kept for the backward pass; those beyond are formed twice."""
    block_bytes: int = BYTES_GPU
    """Of a block of logits and centres."""

    def __post_init__(self) -> None:
        least = min(self.num_classes, self.num_ranks, self.local_batch, self.embedding_dim)
        if least < 1 or not 0 < self.sample_rate <= 1:
            raise UserError("workload", str(self), "classes, ranks, batch, D of 1 or more, a sample rate in (0, 1]")

    @property
    def num_queries(self) -> int:
        """N, embeddings of all ranks."""
        return self.num_ranks * self.local_batch

    @property
    def num_rows(self) -> int:
        """Class centres of the rank that has most."""
        return dist.partition(self.num_classes, 0, self.num_ranks)[1]

    @property
    def num_active(self) -> float:
        """m, of these the ones that take part in a step: the sampled, and the others that the batch shows."""
        own_positives = min(self.local_batch, self.num_rows)
        return self.sample_rate * self.num_rows + (1 - self.sample_rate) * own_positives

    @property
    def logit_bytes(self) -> float:
        """Of all logits of a rank, were they laid out."""
        return FLOAT_BYTES * self.num_queries * self.num_active

    @property
    def num_products(self) -> float:
        """Matrix products of [N, D] by [D, m] or as large: three, and a fourth for the logits that are not kept."""
        return 4 - min(1.0, self.keep_bytes / self.logit_bytes)


@dataclass(frozen=True)
class Prediction:
    """Of one rank."""

    seconds: dict[str, float]
    """Of a step, by part."""
    memory: dict[str, float]
    """Bytes, by what they are for."""
    samples: int
    """Of a step, over all ranks."""

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.step_s

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


def predict(work: Workload, machine: Machine, shares: Shares) -> Prediction:
    """Time and memory of a step; not collective."""
    backbone_s = backbone_flops(work) / (shares.backbone * machine.backbone_flops)
    seconds = {
        "backbone": backbone_s,
        "head": head_flops(work) / (shares.head * machine.head_flops),
        "passes through memory": passes_bytes(work) / machine.memory_bytes_per_s,
        "communication": _communication_s(work, machine, shares, backward_s=backbone_s * 2 / 3),
    }
    return Prediction(seconds, _memory(work), work.num_queries)


def backbone_flops(work: Workload) -> float:
    """Of a rank's step: two a multiply-add, and a backward pass of twice the forward pass."""
    return 3 * 2.0 * work.multiply_adds * work.local_batch


def head_flops(work: Workload) -> float:
    """Of a rank's step."""
    return work.num_products * 2.0 * work.num_queries * work.num_active * work.embedding_dim


def passes_bytes(work: Workload) -> float:
    """Read and written by what works on parameters alone."""
    centres = FLOAT_BYTES * work.num_active * work.embedding_dim
    return BACKBONE_PASSES * FLOAT_BYTES * work.num_parameters + ROW_PASSES * centres


def sent_bytes(work: Workload) -> dict[str, float]:
    """What a rank sends in a step by rings, by what it is.

    To have S bytes summed on all ranks, a rank of a ring sends 2(R − 1)/R · S; to have S bytes gathered from all ranks,
    or the sums of S bytes scattered over them, (R − 1)/R · S (Patarasuk and Yuan 2009, "Bandwidth Optimal All-reduce
    Algorithms for Clusters of Workstations").
    """
    others = (work.num_ranks - 1) / work.num_ranks
    queries = work.num_queries
    facts = 3 if work.sample_rate == 1 else 5
    return {
        "backbone's gradient": 2 * others * FLOAT_BYTES * work.num_parameters,
        "running statistics": 2 * others * FLOAT_BYTES * work.num_statistics,
        "embeddings": others * FLOAT_BYTES * queries * work.embedding_dim,
        "embeddings' gradients": others * FLOAT_BYTES * queries * work.embedding_dim,
        "labels": others * LABEL_BYTES * facts * queries,
        "target logits": 2 * others * FLOAT_BYTES * queries,
        # a greatest logit and a sum for every query
        "sums over classes": 2 * others * 2 * FLOAT_BYTES * queries,
    }


def least_bytes(work: Workload) -> float:
    """What a rank has to send at least where class centres stay: gradients and statistics summed, embeddings and a
    label each gathered, their gradients summed and scattered, and two numbers of each query summed (a target's logit,
    and a sum of exponentials, which a bound on the logits makes safe)."""
    others = (work.num_ranks - 1) / work.num_ranks
    summed = work.num_parameters + work.num_statistics + 2 * work.num_queries
    embeddings = FLOAT_BYTES * work.num_queries * work.embedding_dim
    return others * (2 * FLOAT_BYTES * summed + 2 * embeddings + LABEL_BYTES * work.num_queries)


def _communication_s(work: Workload, machine: Machine, shares: Shares, backward_s: float) -> float:
    """What is not hidden behind the backbone's backward pass, where its gradient is reduced meanwhile."""
    ranks = work.num_ranks
    if ranks == 1:
        return 0.0
    rate = machine.link_bytes_per_s
    if ranks > machine.gpus_per_node:
        # a ring enters and leaves a node once, so all adapters of a node work for it
        rate = min(rate, machine.gpus_per_node * machine.network_bytes_per_s)
    tree_s, ring_s = 2 * math.ceil(math.log2(ranks)) * shares.hop_s, (ranks - 1) * shares.hop_s
    sent = sent_bytes(work)
    gradient = sent.pop("backbone's gradient")
    num_buckets = math.ceil(FLOAT_BYTES * work.num_parameters / BUCKET_BYTES)
    hidden = gradient / rate + num_buckets * tree_s
    num_gathers = NUM_GATHERS + (work.sample_rate < 1)
    return max(0.0, hidden - backward_s) + sum(sent.values()) / rate + NUM_REDUCTIONS * tree_s + num_gathers * ring_s


def _memory(work: Workload) -> dict[str, float]:
    row_bytes = FLOAT_BYTES * work.embedding_dim
    # where a share is drawn, its centres are copied out of all
    copies = 1 if work.sample_rate == 1 else 2
    return {
        "class centres and momentum": 2.0 * row_bytes * work.num_rows,
        "their gradient": copies * row_bytes * work.num_active,
        "backbone, gradient and momentum": 3.0 * FLOAT_BYTES * work.num_parameters,
        "activations": float(work.local_batch * work.activation_bytes),
        "embeddings of all ranks": 3.0 * row_bytes * work.num_queries,
        "sums over classes": 4.0 * FLOAT_BYTES * work.num_queries,
        "logits": min(work.keep_bytes, work.logit_bytes) + 2 * min(work.block_bytes, work.logit_bytes),
    }


def fit_shares(measured: Sequence[tuple[Workload, float]], machine: Machine, hop_s: float = Shares.hop_s) -> Shares:
    """The two shares that make the squares of relative errors least, given workloads and seconds of their steps.

    The reduction of the backbone's gradient counts as hidden behind its backward pass.

    Raises:
        UserError: the workloads do not tell backbone and head apart, or no positive shares fit.
    """
    # seconds ≈ b/share_b + h/share_h + rest: linear in the inverse shares; each line divided by its seconds
    bb = bh = hh = bt = ht = 0.0
    for work, seconds in measured:
        b = backbone_flops(work) / machine.backbone_flops / seconds
        h = head_flops(work) / machine.head_flops / seconds
        passes_s = passes_bytes(work) / machine.memory_bytes_per_s
        rest_s = passes_s + _communication_s(work, machine, Shares(hop_s=hop_s), backward_s=math.inf)
        target = 1 - rest_s / seconds
        bb, bh, hh, bt, ht = bb + b * b, bh + b * h, hh + h * h, bt + b * target, ht + h * target
    determinant = bb * hh - bh * bh
    if determinant <= 1e-9 * bb * hh:
        raise UserError("measured steps", "all are alike", "steps with few and with many classes")
    backbone, head = (bt * hh - ht * bh) / determinant, (ht * bb - bt * bh) / determinant
    if min(backbone, head) <= 0:
        raise UserError("measured steps", f"fit inverse shares {backbone:g}, {head:g}", "positive ones")
    return Shares(1 / backbone, 1 / head, hop_s)
