"""Time and memory of the margin softmax head on one GPU, beside two heads that lay out all logits.

    python benchmarks/head_gpu.py
    python benchmarks/head_gpu.py --classes 200000 --batch 1024 --repeats 9

A step is the loss and its gradients for embeddings [batch, D] and class centres [classes, D]; the optimizer is the
same for all and left out. Peers are plain torch: unit lengths, one product [batch, classes], ArcFace at the target,
`cross_entropy`, autograd; one multiplies in float32, the other in bfloat16 with float32 logits after. Times are
medians by CUDA events. Extra memory is the step's peak beyond parameters, inputs and their gradients. The share is that
of the matrix product rate that this GPU reached in the same run at 8,192³, counting the products each head does: three
for a peer, four where logits are formed twice.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.margins import ArcFaceMargin
from pipeline.model.margins.base import GlobalBatch, Margin, build_margin
from pipeline.model.partial_fc import HeadOptions, MarginSoftmaxHead

WARM_UPS = 3
LEAST_REPEATS = 5
PEAK_SIZE = 8192


@dataclass(frozen=True)
class Contender:
    """A way to compute the loss."""

    name: str
    products: torch.dtype
    """Type of the inputs of its matrix products."""
    num_products: int
    """How many of [batch, D] by [D, classes], or as large, in a step."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """From embeddings [N, D] and labels [N]."""


@dataclass(frozen=True)
class Measurement:
    """One contender's step."""

    loss: float
    seconds: float
    """Median."""
    extra_bytes: int


def main() -> int:
    """Parse the command line and print the table; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS)
    arguments = parser.parse_args()
    if arguments.repeats < LEAST_REPEATS:
        parser.error(f"--repeats {arguments.repeats}: a median of fewer than {LEAST_REPEATS} says little")
    if not torch.cuda.is_available():
        print("no CUDA device: this benchmark measures a GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    peaks = {dtype: product_rate(dtype, arguments.repeats) for dtype in (torch.float32, torch.bfloat16)}
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.classes:,} classes, D {arguments.dim}"
    )
    print("measured product rates: " + ", ".join(f"{name(d)} {rate / 1e12:.0f} TFLOP/s" for d, rate in peaks.items()))
    margin = build_margin(ArcFaceMargin(), arguments.classes)
    options = HeadOptions(products="bf16")
    head = MarginSoftmaxHead(arguments.classes, arguments.dim, margin, 0, options).to(device)
    for batch in arguments.batch:
        generator = torch.Generator(device).manual_seed(batch)
        embeddings = torch.randn(batch, arguments.dim, generator=generator, device=device)
        labels = torch.randint(0, arguments.classes, (batch,), generator=generator, device=device)
        ours, *peers = contenders(head)
        least = measure(ours, head.class_centres, embeddings, labels, arguments.repeats)
        report(ours, least, least, batch, embeddings.numel() * arguments.classes, peaks)
        for peer in peers:
            try:
                found = measure(peer, head.class_centres, embeddings, labels, arguments.repeats)
            except torch.OutOfMemoryError:
                print(f"batch {batch:>5}  {peer.name:<16}  out of memory")
                head.class_centres.grad = None
                torch.cuda.empty_cache()
                continue
            assert abs(found.loss - least.loss) < 1e-2 * least.loss, "the contenders compute different losses"
            report(peer, found, least, batch, embeddings.numel() * arguments.classes, peaks)
    return 0


def report(
    contender: Contender,
    found: Measurement,
    ours: Measurement,
    batch: int,
    multiplications: int,
    peaks: dict[torch.dtype, float],
) -> None:
    """Print one line of the table; `multiplications` of one of the head's products."""
    share = contender.num_products * 2 * multiplications / found.seconds / peaks[contender.products]
    print(
        f"batch {batch:>5}  {contender.name:<16}  "
        f"{found.seconds * 1e3:9.2f} ms, {found.seconds / ours.seconds:.2f} times ours  "
        f"extra {found.extra_bytes / 2**20:7.0f} MiB, {found.extra_bytes / ours.extra_bytes:.2f} times ours  "
        f"{share:.0%} of the {name(contender.products)} product rate"
    )


def contenders(head: MarginSoftmaxHead) -> list[Contender]:
    """Ours first; all share the head's class centres and margin."""

    def ours(embeddings: Tensor, labels: Tensor) -> Tensor:
        ids, valid = torch.arange(len(labels), device=labels.device), torch.ones_like(labels, dtype=torch.bool)
        return head(embeddings, labels, ids, valid, 0).loss

    def peer(products: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda embeddings, labels: naive_loss(embeddings, head.class_centres, labels, head.margin, products)

    return [
        Contender("ours", torch.bfloat16, 4, ours),
        Contender("all logits, fp32", torch.float32, 3, peer(torch.float32)),
        Contender("all logits, bf16", torch.bfloat16, 3, peer(torch.bfloat16)),
    ]


def naive_loss(embeddings: Tensor, centres: Tensor, labels: Tensor, margin: Margin, products: torch.dtype) -> Tensor:
    """Mean cross-entropy over logits [N, classes] that are laid out, as a plain head computes it."""
    norm = embeddings.norm(dim=1)
    cosine = functional.linear(
        functional.normalize(embeddings).to(products), functional.normalize(centres).to(products)
    )
    logits = margin.logit_scale(norm) * cosine.float()
    batch = GlobalBatch(norm, labels, torch.ones_like(labels, dtype=torch.bool), step=0, seed=0)
    target = margin.target_logit(cosine.gather(1, labels[:, None]).squeeze(1).float(), batch)
    return functional.cross_entropy(logits.scatter(1, labels[:, None], target[:, None]), labels)


def measure(contender: Contender, centres: Tensor, embeddings: Tensor, labels: Tensor, repeats: int) -> Measurement:
    """Time `repeats` steps after some that choose kernels, then the peak of one more."""
    leaf = embeddings.clone().requires_grad_()

    def step() -> Tensor:
        centres.grad = leaf.grad = None
        loss = contender.loss(leaf, labels)
        loss.backward()
        return loss.detach()

    for _ in range(WARM_UPS):
        step()
    seconds = statistics.median(time_on_gpu(step) for _ in range(repeats))
    centres.grad = leaf.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = float(step())
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (centres, leaf))
    extra_bytes = torch.cuda.max_memory_allocated() - before - gradients
    centres.grad = None
    return Measurement(loss, seconds, extra_bytes)


def time_on_gpu(work: Callable[[], object]) -> float:
    """Seconds that the GPU takes, whatever the host does meanwhile."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def product_rate(dtype: torch.dtype, repeats: int) -> float:
    """FLOP/s of a large square matrix product."""
    left, right = torch.randn(2, PEAK_SIZE, PEAK_SIZE, device="cuda").to(dtype).unbind()
    for _ in range(WARM_UPS):
        left @ right
    return 2 * PEAK_SIZE**3 / statistics.median(time_on_gpu(lambda: left @ right) for _ in range(repeats))


def name(dtype: torch.dtype) -> str:
    """fp32 or bf16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


if __name__ == "__main__":
    sys.exit(main())
