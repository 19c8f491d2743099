"""Semi-hard mining plus triplet loss, forward and backward: the triplet head against pytorch-metric-learning.

    python benchmarks/triplet_mining.py --json triplet_mining.json

Both get the same embeddings, compare them by squared distance on the unit sphere with margin 0.2, and leave the
gradient in the embeddings. Each measurement has a process of its own, under a limit of address space, so that one that
runs out of memory is reported and takes nothing else down. Extra memory is the growth of the process over what it held
before the first call. The peer keeps all semi-hard triplets, the head the nearest semi-hard negative of each
anchor-positive pair, as FaceNet trains with; the head also makes its metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import Figure, write
from torch import Tensor

DEFAULT_SHAPES = ["256x4", "1024x4", "102x40"]
CONTESTANTS = ("facemill", "pytorch-metric-learning")
MARGIN = 0.2
IDENTITY_SHARE = 0.5
"""Length of what a person's photos share, relative to what they do not: as early in training, when pairs are mined."""


def main() -> None:
    """Measure all shapes and print their figures; or, as a child, one contestant at one shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=DEFAULT_SHAPES, metavar="PEOPLExPHOTOS")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-limit-gib", type=float, default=12.0, help="address space of each process")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--measure", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.shapes[0], arguments)))
        return
    figures = []
    for shape in arguments.shapes:
        found = {name: run_child(name, shape, arguments) for name in CONTESTANTS}
        figures += compare(f"triplets, {shape} photos, {arguments.dim}-d", found)
        print("\n".join(figure.text() for figure in figures[-2:]))
        for name, one in found.items():
            print(f"  {name}: {describe(one)}", flush=True)
    if arguments.json:
        write(arguments.json, figures)


def compare(what: str, found: dict[str, dict[str, Any]]) -> list[Figure]:
    """Time and memory; a peer that ran out of memory has none."""
    ours, peers = found[CONTESTANTS[0]], {name: found[name] for name in CONTESTANTS[1:]}
    if "failure" in ours:
        raise SystemExit(f"{what}: {ours['failure']}")
    return [
        Figure(
            f"{what}: {name}", unit, ours[key], {peer: one[key] for peer, one in peers.items() if key in one}, goal=goal
        )
        for name, unit, key, goal in (
            ("a step", "s", "times_s", "5 times; 1 s for 1024x4"),
            ("extra memory", "MiB", "extra_mib", "below 1 GB for 1024x4"),
        )
    ]


def describe(figures: dict[str, Any]) -> str:
    """What stands beside the figures of a measurement."""
    if "failure" in figures:
        return str(figures["failure"])
    return (
        f"processor time {statistics.median(figures['processor_times_s']):.3f} s, loss {figures['loss']:.4f}, "
        f"{figures['num_triplets']:,} triplets"
    )


def run_child(name: str, shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    limit = int(arguments.memory_limit_gib * 2**30)
    command = [sys.executable, __file__, "--measure", name, "--shapes", shape]
    for option in ("dim", "threads", "repeats"):
        command += [f"--{option}", str(getattr(arguments, option))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        # where other work shares the cores, threads that spin while they wait would time that work
        env=os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "passive"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )
    if done.returncode == 0:
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return figures
    if "can't allocate memory" in done.stderr or "MemoryError" in done.stderr:
        return {"failure": f"ran out of memory at {arguments.memory_limit_gib:g} GiB"}
    raise SystemExit(f"{name} at {shape} failed:\n{done.stderr}")


def measure(name: str, shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of one contestant at one shape."""
    torch.set_num_threads(arguments.threads)
    num_people, num_photos = (int(part) for part in shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(num_people, arguments.dim, generator=generator)
    noise = torch.randn(num_people * num_photos, arguments.dim, generator=generator)
    embeddings = IDENTITY_SHARE * people.repeat_interleave(num_photos, 0) + noise
    labels = torch.arange(num_people).repeat_interleave(num_photos)
    step = CONTESTANT_STEPS[name](num_people, arguments.dim)
    # what a library loads or reserves at its first call counts for neither
    step(embeddings[: 4 * num_photos].clone().requires_grad_(), labels[: 4 * num_photos])
    before = resident_bytes()
    times, processor_times = [], []
    for number in range(arguments.repeats + 1):
        leaf = embeddings.clone().requires_grad_()
        began, processor_began = time.perf_counter(), time.process_time()
        loss, num_triplets = step(leaf, labels)
        times.append(time.perf_counter() - began)
        processor_times.append(time.process_time() - processor_began)
        if number == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        # the first call is a warm-up
        "times_s": times[1:],
        "processor_times_s": processor_times[1:],
        "extra_mib": [(peak - before) / 2**20],
        "loss": loss,
        "num_triplets": num_triplets,
    }


def resident_bytes() -> int:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def facemill_step(num_people: int, dim: int) -> Callable[[Tensor, Tensor], tuple[float, int]]:
    """Forward and backward of the triplet head."""
    from pipeline.config.metric_heads import TripletConfig
    from pipeline.model.head import build_head

    head = build_head(TripletConfig(margin=MARGIN), num_people, dim, seed=0)

    def step(embeddings: Tensor, labels: Tensor) -> tuple[float, int]:
        ids, valid = torch.arange(len(labels)), torch.ones(len(labels), dtype=torch.bool)
        output = head(embeddings, labels, ids, valid, 0)
        output.loss.backward()
        return output.loss.item(), int(output.metrics["num_triplets"])

    return step


def peer_step(num_people: int, dim: int) -> Callable[[Tensor, Tensor], tuple[float, int]]:
    """Forward and backward of the peer's miner and loss."""
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner

    distance = LpDistance(normalize_embeddings=True, p=2, power=2)
    miner = TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=distance)
    criterion = TripletMarginLoss(margin=MARGIN, distance=distance)

    def step(embeddings: Tensor, labels: Tensor) -> tuple[float, int]:
        mined = miner(embeddings, labels)
        loss = criterion(embeddings, labels, mined)
        loss.backward()
        return loss.item(), len(mined[0])

    return step


CONTESTANT_STEPS = {"facemill": facemill_step, "pytorch-metric-learning": peer_step}


if __name__ == "__main__":
    main()
