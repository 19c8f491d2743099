"""Step time and memory for 8 to 1,024 GPUs and 1M to 100M classes, and how far the model that predicts them holds.

    python benchmarks/predict.py
    python benchmarks/predict.py --gpu H100 --backbone-share 0.4 --head-share 0.6 --local-batch 256 --no-measurements

Three parts. Two constants, the shares of their peaks that backbone and head reach, are fitted to InsightFace's
published speeds of Partial FC at rate 0.1 and compared with them, and with its speeds at rate 1, which they were not
fitted to. One constant is fitted to a step of this project's head on one thread of this machine, and steps with other
numbers of classes, batches and rates are predicted and measured. Then comes the table, in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from figures import Figure, write
from head_step import extra_memory_mib, ours, timed

from pipeline.config.backbones import IResNetConfig
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.predict import MACHINES, Machine, Shares, Workload, fit_shares, head_flops, passes_bytes, predict
from pipeline.model.backbones.cost import backbone_cost
from pipeline.model.block_size import BYTES_CPU
from pipeline.model.partial_fc import KEEP_BYTES_CPU

ALL_LOGITS = 2**62
"""Budget of a head that lays out all logits, as the published one does."""
PUBLISHED = {125_000: 5004, 1_000_000: 4803, 5_500_000: 3975, 8_000_000: 3565, 29_000_000: 1855}
PUBLISHED_RATE_1 = {125_000: 4824, 1_400_000: 3043, 5_500_000: 1389}
"""Samples/s by classes on 8 V100, IResNet-50, 1,024 photos a step, mixed precision, as InsightFace's arcface_torch
publishes them: its columns "Partial FC 0.1" and "Model Parallel"."""
RANKS = (8, 64, 256, 1024)
CLASSES = (1_000_000, 10_000_000, 100_000_000)
RATES = (1.0, 0.1)
MEASURED = ((50_000, 256, 1.0), (20_000, 256, 1.0), (100_000, 256, 1.0), (50_000, 512, 1.0), (100_000, 256, 0.1))
"""Classes, batch and rate of the steps on this machine; the first is the one that the constant is fitted to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=MACHINES, nargs="+", default=list(MACHINES))
    parser.add_argument("--flops", type=float, help="peak of 16-bit products, FLOP/s, in place of the data sheet's")
    parser.add_argument("--head-flops", type=float, help="peak of float32 products, FLOP/s")
    parser.add_argument("--memory-bandwidth", type=float, help="bytes/s")
    parser.add_argument("--link-bandwidth", type=float, help="of a GPU within its node, one way, bytes/s")
    parser.add_argument("--network-bandwidth", type=float, help="of a GPU's share of its node's, one way, bytes/s")
    parser.add_argument("--backbone-share", type=float, default=Shares.backbone, help="of the peak that is reached")
    parser.add_argument("--head-share", type=float, default=Shares.head)
    parser.add_argument("--local-batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-measurements", action="store_true", help="of this machine")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    network = resnet50()
    figures = against_published(network)
    if not arguments.no_measurements:
        figures += against_this_machine(arguments.repeats)
    for figure in figures:
        print(figure.text())
    shares = Shares(arguments.backbone_share, arguments.head_share)
    print(table({name: _changed(MACHINES[name], arguments) for name in arguments.gpu}, network, shares, arguments))
    if arguments.json:
        write(arguments.json, figures)


def resnet50() -> Workload:
    """An IResNet-50 in 16 bit at 112 px; classes and ranks are to be replaced."""
    cost = backbone_cost(IResNetConfig(depth=50), 112)
    return Workload(
        num_classes=1,
        num_ranks=8,
        local_batch=128,
        multiply_adds=cost.multiply_adds,
        num_parameters=cost.num_parameters,
        activation_bytes=cost.activation_bytes // 2,
    )


def against_published(network: Workload) -> list[Figure]:
    """Fit two constants to five rows, and predict these and three others."""
    machine = MACHINES["V100"]
    samples = network.num_queries

    def work(num_classes: int, rate: float) -> Workload:
        return replace(network, num_classes=num_classes, sample_rate=rate, keep_bytes=ALL_LOGITS)

    shares = fit_shares([(work(classes, 0.1), samples / speed) for classes, speed in PUBLISHED.items()], machine)
    print(f"8 V100: backbone {shares.backbone:.1%} of 16-bit peak, head {shares.head:.1%} of float32 peak (fitted)")
    figures = []
    for rate, rows, kind in ((0.1, PUBLISHED, "fitted"), (1.0, PUBLISHED_RATE_1, "not fitted")):
        for classes, speed in rows.items():
            found = predict(work(classes, rate), machine, shares).samples_per_s
            what = f"predicted, 8 V100, {classes:,} classes, rate {rate:g} ({kind}): {found / speed - 1:+.1%}"
            figures.append(Figure(what, "samples/s", [found], {"published": [float(speed)]}))
    return figures


def against_this_machine(repeats: int) -> list[Figure]:
    """Fit one constant to a head step on one thread, and predict others: time, and memory beside parameters."""
    torch.set_num_threads(1)
    keep_freed_memory()
    steps = [ours(*shape) for shape in MEASURED]
    extra_mib = [extra_memory_mib(lambda step=step: [step(0), step(1)]) for step in steps]
    seconds: list[list[float]] = [[] for _ in steps]
    products, copies = [], []
    for number in range(repeats):
        for step, times in zip(steps, seconds, strict=True):
            times.append(timed(lambda step=step, number=number: step(2 + number)))
        products.append(product_rate())
        copies.append(copy_rate())
    peak, bandwidth = statistics.median(products), statistics.median(copies)
    machine = Machine(peak, peak, bandwidth, bandwidth, bandwidth)
    works = [
        Workload(classes, 1, batch, sample_rate=rate, keep_bytes=KEEP_BYTES_CPU, block_bytes=BYTES_CPU)
        for classes, batch, rate in MEASURED
    ]
    in_products_s = statistics.median(seconds[0]) - passes_bytes(works[0]) / bandwidth
    shares = Shares(1.0, head_flops(works[0]) / peak / in_products_s)
    print(f"one thread: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s, head {shares.head:.0%} of it (fitted)")
    figures = []
    for (classes, batch, rate), work, times, mib in zip(MEASURED, works, seconds, extra_mib, strict=True):
        found = predict(work, machine, shares)
        error = found.step_s / statistics.median(times) - 1
        what = f"head step, {classes:,} classes, batch {batch}, rate {rate:g}: predicted {error:+.1%}"
        figures.append(Figure(what, "s", times, {"predicted": [found.step_s]}))
        resident = found.memory_bytes - found.memory["class centres and momentum"]
        what = f"its memory beside parameters and momentum: predicted {resident / 2**20 / mib - 1:+.1%}"
        figures.append(Figure(what, "MiB", [mib], {"predicted": [resident / 2**20]}))
    return figures


def product_rate(size: int = 1024) -> float:
    """FLOP/s of one large matrix product."""
    left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    began = time.perf_counter()
    torch.mm(left, right, out=out)
    return 2.0 * size**3 / (time.perf_counter() - began)


def copy_rate(num_bytes: int = 2**27) -> float:
    """Bytes/s of a large copy, read and written ones."""
    source, target = torch.ones(num_bytes // 4), torch.ones(num_bytes // 4)
    began = time.perf_counter()
    target.copy_(source)
    return 2.0 * num_bytes / (time.perf_counter() - began)


def table(machines: dict[str, Machine], network: Workload, shares: Shares, arguments: argparse.Namespace) -> str:
    """Markdown: a row a GPU, number of them and rate, step time and memory by classes."""
    head = [f"{classes // 10**6}M classes" for classes in CLASSES]
    lines = [
        f"IResNet-50, {arguments.local_batch} photos a GPU, {shares.backbone:.1%} and {shares.head:.1%} of the peaks: "
        "ms a step, samples/s, GiB of a GPU",
        "",
        "| | GPUs | rate | " + " | ".join(head) + " |",
        "|---|---|---|" + "---|" * len(head),
    ]
    for name, machine in machines.items():
        for ranks in RANKS:
            for rate in RATES:
                cells = [
                    cell(
                        replace(
                            network, num_classes=c, num_ranks=ranks, local_batch=arguments.local_batch, sample_rate=rate
                        ),
                        machine,
                        shares,
                    )
                    for c in CLASSES
                ]
                lines.append(f"| {name} | {ranks:,} | {rate:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(work: Workload, machine: Machine, shares: Shares) -> str:
    """A prediction in a few characters."""
    found = predict(work, machine, shares)
    fits = "" if found.memory_bytes <= machine.memory_bytes else ", too much"
    return f"{1000 * found.step_s:,.0f} ms, {found.samples_per_s:,.0f}/s, {found.memory_bytes / 2**30:.1f}{fits}"


def _changed(machine: Machine, arguments: argparse.Namespace) -> Machine:
    wanted = {
        "backbone_flops": arguments.flops,
        "head_flops": arguments.head_flops,
        "memory_bytes_per_s": arguments.memory_bandwidth,
        "link_bytes_per_s": arguments.link_bandwidth,
        "network_bytes_per_s": arguments.network_bandwidth,
    }
    return replace(machine, **{name: value for name, value in wanted.items() if value is not None})


if __name__ == "__main__":
    main()
