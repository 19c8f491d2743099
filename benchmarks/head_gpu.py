"""Time and memory of the margin softmax head on one GPU, beside two heads that lay out all logits.

    python benchmarks/head_gpu.py
    python benchmarks/head_gpu.py --classes 200000 --batch 1024 --repeats 9

A step is the loss and its gradients for embeddings [batch, D] and class centres [classes, D]; the optimizer is the
same for all and left out. Peers are plain torch: unit lengths, one product [batch, classes], ArcFace at the target,
`cross_entropy`, autograd; one multiplies in float32, the other in bfloat16 with float32 logits after. Times are taken
by CUDA events. Extra memory is the step's peak beyond parameters, inputs and their gradients. The limit is the time of
three bf16 products, the fewest that a step needs, at the rate that this GPU reached in the same run at 8,192³; ours
takes four, because it forms logits twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from figures import Figure, write
from torch import Tensor
from torch.nn import functional

from pipeline.config.margins import ArcFaceMargin
from pipeline.model.margins.base import GlobalBatch, Margin, build_margin
from pipeline.model.partial_fc import HeadOptions, MarginSoftmaxHead

WARM_UPS = 3
LEAST_REPEATS = 5
PEAK_SIZE = 8192
LEAST_PRODUCTS = 3
"""Of [batch, D] by [D, classes], or as large: the logits, and the gradients of embeddings and centres."""


@dataclass(frozen=True)
class Contender:
    """A way to compute the loss."""

    name: str
    products: torch.dtype
    """Type of the inputs of its matrix products."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """From embeddings [N, D] and labels [N]."""


@dataclass(frozen=True)
class Measurement:
    """One contender's step."""

    loss: float
    seconds: list[float]
    extra_mib: float


def main() -> int:
    """Parse the command line and print the figures; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    if arguments.repeats < LEAST_REPEATS:
        parser.error(f"--repeats {arguments.repeats}: a median of fewer than {LEAST_REPEATS} says little")
    if not torch.cuda.is_available():
        print("no CUDA device: this benchmark measures a GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    product_s = product_seconds(torch.bfloat16, arguments.repeats)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.classes:,} classes, D {arguments.dim}"
    )
    margin = build_margin(ArcFaceMargin(), arguments.classes)
    options = HeadOptions(products="bf16")
    head = MarginSoftmaxHead(arguments.classes, arguments.dim, margin, 0, options).to(device)
    figures = []
    for batch in arguments.batch:
        generator = torch.Generator(device).manual_seed(batch)
        embeddings = torch.randn(batch, arguments.dim, generator=generator, device=device)
        labels = torch.randint(0, arguments.classes, (batch,), generator=generator, device=device)
        found: dict[str, Measurement] = {}
        for contender in contenders(head):
            try:
                one = measure(contender, head.class_centres, embeddings, labels, arguments.repeats)
            except torch.OutOfMemoryError:
                if contender.name == "ours":
                    raise
                print(f"batch {batch:,}: {contender.name} ran out of memory")
                head.class_centres.grad = None
                torch.cuda.empty_cache()
                continue
            found[contender.name] = one
            assert abs(one.loss - found["ours"].loss) < 1e-2 * one.loss, "the contenders compute different losses"
        work = embeddings.numel() * arguments.classes / PEAK_SIZE**3
        limit = [LEAST_PRODUCTS * work * seconds for seconds in product_s]
        figures += compare(f"head, {arguments.classes:,} classes, batch {batch:,}, GPU", found, limit)
        print("\n".join(figure.text() for figure in figures[-2:]), flush=True)
    if arguments.json:
        write(arguments.json, figures)
    return 0


def compare(what: str, found: dict[str, Measurement], limit: list[float]) -> list[Figure]:
    """Time and memory of ours, `found["ours"]`, beside the others; `limit` in seconds."""
    ours, peers = found["ours"], {name: one for name, one in found.items() if name != "ours"}
    return [
        Figure(
            f"{what}: loss and gradients",
            "s",
            ours.seconds,
            {name: one.seconds for name, one in peers.items()},
            ("three bf16 products", limit),
            "fp32: 3 times, bf16: 2 times",
        ),
        Figure(
            f"{what}: extra memory",
            "MiB",
            [ours.extra_mib],
            {name: [one.extra_mib] for name, one in peers.items()},
            goal="8 times",
        ),
    ]


def contenders(head: MarginSoftmaxHead) -> list[Contender]:
    """Ours first; all share the head's class centres and margin."""

    def ours(embeddings: Tensor, labels: Tensor) -> Tensor:
        ids, valid = torch.arange(len(labels), device=labels.device), torch.ones_like(labels, dtype=torch.bool)
        return head(embeddings, labels, ids, valid, 0).loss

    def peer(products: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda embeddings, labels: naive_loss(embeddings, head.class_centres, labels, head.margin, products)

    return [
        Contender("ours", torch.bfloat16, ours),
        Contender("all logits, fp32", torch.float32, peer(torch.float32)),
        Contender("all logits, bf16", torch.bfloat16, peer(torch.bfloat16)),
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
    seconds = [time_on_gpu(step) for _ in range(repeats)]
    centres.grad = leaf.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = float(step())
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (centres, leaf))
    extra_bytes = torch.cuda.max_memory_allocated() - before - gradients
    centres.grad = None
    return Measurement(loss, seconds, extra_bytes / 2**20)


def time_on_gpu(work: Callable[[], object]) -> float:
    """Seconds that the GPU takes, whatever the host does meanwhile."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def product_seconds(dtype: torch.dtype, repeats: int) -> list[float]:
    """Seconds of a large square matrix product, several times."""
    left, right = torch.randn(2, PEAK_SIZE, PEAK_SIZE, device="cuda").to(dtype).unbind()
    for _ in range(WARM_UPS):
        left @ right
    return [time_on_gpu(lambda: left @ right) for _ in range(repeats)]


if __name__ == "__main__":
    sys.exit(main())
