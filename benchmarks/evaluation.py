"""Time and memory of evaluation measures, each beside the plain loop over its definition, in one run.

    python benchmarks/evaluation.py                     # verification: seconds
    python benchmarks/evaluation.py --search 1000000    # and a search among a million embeddings: minutes

Embeddings and scores are made up, of the sizes that the protocols have. A loop that would take hours is run on fewer
pairs or points and its time multiplied; the table says so.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.evaluate import intervals, templates
from pipeline.evaluate import verification as v
from pipeline.evaluate.identification import enrolled_ranks
from pipeline.evaluate.search import PROBE_BLOCK, block_edges, nearest, score_blocks

IJBC_PAIRS = 15_658_489
IJBC_SAME = 19_557
IJBC_TEMPLATES = 23_124


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", type=int, metavar="GALLERY", help="search among so many embeddings, too")
    parser.add_argument("--probes", type=int, default=10_000, help="of the search")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{len(os.sched_getaffinity(0))} cores, {threads} threads for products, numpy {np.__version__}")
    ten_folds()
    tar_at_far()
    template_pairs()
    if arguments.search:
        search(arguments.search, arguments.probes)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def ten_folds() -> None:
    """The 10-fold accuracy of 6,000 pairs, as on LFW, and its interval."""
    rng = np.random.default_rng(0)
    same = np.tile(np.repeat([True, False], 300), 10)
    distances = np.clip(rng.normal(np.where(same, 1.0, 1.6), 0.3), 0, 4)
    fold = np.repeat(np.arange(10), 600)
    ours, found = timed(lambda: v.fold_accuracy(distances, same, fold).accuracy.tolist(), repeats=20)
    loop, expected = timed(lambda: loop_folds(distances, same, fold))
    assert found == expected
    report("10-fold accuracy, 6,000 pairs", ours, loop, "equal to the last digit")
    left = rng.integers(0, 4000, 6000)
    right = np.where(same, left, rng.integers(0, 4000, 6000))
    figures = intervals.VerificationFigures(distances, same, fold, {"1e-3": 1e-3})
    report(
        "intervals of it, AUC, EER, d', TAR: 1,000 draws", timed(lambda: intervals.bootstrap(figures, left, right))[0]
    )


def tar_at_far() -> None:
    """TAR at FAR 1e-1 … 1e-6 from as many scores as IJB-C has pairs."""
    rng = np.random.default_rng(0)
    same = np.arange(IJBC_PAIRS) < IJBC_SAME
    distances = rng.random(IJBC_PAIRS)
    distances[~same] = 2.0 + rng.normal(0, 0.1, IJBC_PAIRS - IJBC_SAME)
    distances[:IJBC_SAME] += 0.9
    fars = [10.0**-n for n in range(1, 7)]

    def ours() -> list[Any]:
        roc = v.roc_curve(distances, same)
        return [v.true_accept_rate(roc, far) for far in fars]

    def loop(num_thresholds: int) -> list[float]:
        """One pass over all pairs for each threshold that is tried."""
        grid = np.linspace(0, 4, num_thresholds)
        return [float(np.mean(distances[~same] <= threshold)) for threshold in grid]

    seconds, points = timed(ours)
    tried = 4
    plain = timed(lambda: loop(tried))[0] * 400 / tried
    rates = ", ".join(f"{point.tar:.4f}" for point in points)
    report(
        f"TAR at FAR 1e-1 … 1e-6, {IJBC_PAIRS:,} pairs", seconds, plain, f"loop: 400 thresholds, from {tried}; {rates}"
    )


def template_pairs() -> None:
    """The cosines of IJB-C's template pairs, 512-d."""
    rng = np.random.default_rng(0)
    vectors = unit(rng, IJBC_TEMPLATES)
    ids = np.arange(IJBC_TEMPLATES)
    pairs = np.stack((rng.integers(0, IJBC_TEMPLATES, IJBC_PAIRS), rng.integers(0, IJBC_TEMPLATES, IJBC_PAIRS)))
    built = templates.Templates(ids, vectors)
    seconds, scores = timed(lambda: templates.pair_scores(built, pairs[0], pairs[1]))
    few = 20_000
    plain, expected = timed(lambda: [float(vectors[a] @ vectors[b]) for a, b in pairs[:, :few].T])
    assert np.allclose(scores[:few], expected, atol=1e-5)
    report(f"cosines of {IJBC_PAIRS:,} template pairs", seconds, plain * IJBC_PAIRS / few, f"loop: from {few:,}")


def search(num_gallery: int, num_probes: int) -> None:
    """Nearest ten and exact ranks among a gallery, beside the bare matrix product in the same blocks."""
    rng = np.random.default_rng(0)
    gallery = unit(rng, num_gallery)
    people = np.arange(num_gallery)
    who = rng.integers(0, num_gallery, num_probes)
    probes = gallery[who] + unit(rng, num_probes) * np.float32(2.0)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    product = timed(lambda: bare_product(probes, gallery))[0]
    name = f"{num_probes:,} probes x {num_gallery:,} gallery, 512-d"
    seconds, found = timed(lambda: nearest(probes, gallery, 10, engine="blocks"))
    report(f"bare product of {name}", product)
    report(f"nearest 10, {name}", seconds, note=beside(seconds, product))
    seconds, ranks = timed(lambda: enrolled_ranks(probes, who, gallery, people))
    report(f"exact ranks, {name}", seconds, note=beside(seconds, product))
    agree = np.mean((ranks.rank == 1) == (found.rows[:, 0] == who))
    print(f"    rank-1 {np.mean(ranks.rank == 1):.4f}; both ways agree on {agree:.6f} of the probes")


def beside(seconds: Seconds, product: Seconds) -> str:
    """How much more than the bare product it took."""
    return f"{seconds / product:.2f} x the bare product, {seconds.cpu / product.cpu:.2f} x of the processor"


def bare_product(probes: Any, gallery: Any) -> None:
    """The products that a search takes, in its blocks, and nothing else."""
    for start in range(0, len(probes), PROBE_BLOCK):
        for _ in score_blocks(probes[start : start + PROBE_BLOCK], gallery, block_edges(len(gallery))):
            pass


def loop_folds(distances: Any, same: Any, fold: Any) -> list[float]:
    """InsightFace's protocol, loop for loop."""
    accuracies = []
    for number in range(10):
        others, own = fold != number, fold == number
        scores = [np.mean((distances[others] < threshold) == same[others]) for threshold in v.GRID]
        best = v.GRID[np.argmax(scores)]
        accuracies.append(float(np.mean((distances[own] < best) == same[own])))
    return accuracies


def unit(rng: np.random.Generator, count: int) -> Any:
    """[count, 512] float32 unit vectors, made in parts so that memory does not double."""
    vectors = np.empty((count, 512), np.float32)
    for start in range(0, count, 65_536):
        part = rng.standard_normal((min(65_536, count - start), 512), np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


class Seconds(float):
    """Elapsed time, with the processor's beside it: on a busy machine only the latter means something."""

    cpu: float


def timed(call: Callable[[], Any], repeats: int = 1) -> tuple[Seconds, Any]:
    """Seconds a call, the least of some, and what it gives."""
    times, found = [], None
    for _ in range(repeats):
        cpu, started = time.process_time(), time.perf_counter()
        found = call()
        times.append(Seconds(time.perf_counter() - started))
        times[-1].cpu = time.process_time() - cpu
    return min(times), found


def report(name: str, seconds: Seconds, loop: float | None = None, note: str = "") -> None:
    """One line."""
    beside = "" if loop is None else f", plain loop {loop:.4f} s, {loop / seconds:.0f} x"
    print(f"{name}: {seconds:.4f} s ({seconds.cpu:.4f} s of the processor){beside}", f"({note})" if note else "")


if __name__ == "__main__":
    main()
