"""Time and memory of evaluation measures, each beside the plain loop over its definition, in one run.

    python benchmarks/evaluation.py                     # verification: seconds
    python benchmarks/evaluation.py --search 1000000    # and a search among a million embeddings: minutes

Embeddings and scores are made up, of the sizes that the protocols have. A loop that would take hours is run on fewer
pairs or points and its time multiplied; its name says so. The limit of a search is the bare matrix product.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, write

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
    parser.add_argument("--pairs", type=int, default=IJBC_PAIRS, help="as many as IJB-C has")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{len(os.sched_getaffinity(0))} cores, {threads} threads for products, numpy {np.__version__}")
    figures = ten_folds(repeats)
    figures.append(tar_at_far(arguments.pairs, repeats))
    figures.append(template_pairs(arguments.pairs, repeats))
    if arguments.search:
        figures += search(arguments.search, arguments.probes, repeats)
    print("\n".join(figure.text() for figure in figures))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if arguments.json:
        write(arguments.json, figures)


def ten_folds(repeats: int) -> list[Figure]:
    """The 10-fold accuracy of 6,000 pairs, as on LFW, equal to the last digit, and its interval."""
    rng = np.random.default_rng(0)
    same = np.tile(np.repeat([True, False], 300), 10)
    distances = np.clip(rng.normal(np.where(same, 1.0, 1.6), 0.3), 0, 4)
    fold = np.repeat(np.arange(10), 600)
    ours, found = timed(lambda: v.fold_accuracy(distances, same, fold).accuracy.tolist(), repeats)
    loop, expected = timed(lambda: loop_folds(distances, same, fold), repeats)
    assert found == expected
    left = rng.integers(0, 4000, 6000)
    right = np.where(same, left, rng.integers(0, 4000, 6000))
    drawn = intervals.VerificationFigures(distances, same, fold, {"1e-3": 1e-3})
    bootstrap, _ = timed(lambda: intervals.bootstrap(drawn, left, right), repeats)
    return [
        Figure("10-fold accuracy, 6,000 pairs", "s", ours, {"plain loop": loop}),
        Figure("intervals of it, AUC, EER, d', TAR: 1,000 draws", "s", bootstrap),
    ]


def tar_at_far(num_pairs: int, repeats: int) -> Figure:
    """TAR at FAR 1e-1 … 1e-6 from as many scores as IJB-C has pairs."""
    rng = np.random.default_rng(0)
    same = np.arange(num_pairs) < IJBC_SAME
    distances = rng.random(num_pairs)
    distances[~same] = 2.0 + rng.normal(0, 0.1, num_pairs - IJBC_SAME)
    distances[:IJBC_SAME] += 0.9
    fars = [10.0**-n for n in range(1, 7)]

    def ours() -> list[Any]:
        roc = v.roc_curve(distances, same)
        return [v.true_accept_rate(roc, far) for far in fars]

    def loop(num_thresholds: int) -> list[float]:
        """One pass over all pairs for each threshold that is tried."""
        grid = np.linspace(0, 4, num_thresholds)
        return [float(np.mean(distances[~same] <= threshold)) for threshold in grid]

    seconds, _ = timed(ours, repeats)
    tried = 4
    plain = [400 / tried * one for one in timed(lambda: loop(tried), repeats)[0]]
    name = f"loop, 400 thresholds from {tried}"
    return Figure(f"TAR at FAR 1e-1 … 1e-6, {num_pairs:,} pairs", "s", seconds, {name: plain})


def template_pairs(num_pairs: int, repeats: int) -> Figure:
    """The cosines of IJB-C's template pairs, 512-d."""
    rng = np.random.default_rng(0)
    vectors = unit(rng, IJBC_TEMPLATES)
    ids = np.arange(IJBC_TEMPLATES)
    pairs = np.stack((rng.integers(0, IJBC_TEMPLATES, num_pairs), rng.integers(0, IJBC_TEMPLATES, num_pairs)))
    built = templates.Templates(ids, vectors)
    seconds, scores = timed(lambda: templates.pair_scores(built, pairs[0], pairs[1]), repeats)
    few = 20_000
    loop, expected = timed(lambda: [float(vectors[a] @ vectors[b]) for a, b in pairs[:, :few].T], repeats)
    assert np.allclose(scores[:few], expected, atol=1e-5)
    plain = [one * num_pairs / few for one in loop]
    return Figure(f"cosines of {num_pairs:,} template pairs", "s", seconds, {f"loop, pairs from {few:,}": plain})


def search(num_gallery: int, num_probes: int, repeats: int) -> list[Figure]:
    """Nearest ten and exact ranks among a gallery, beside the bare matrix product in the same blocks."""
    rng = np.random.default_rng(0)
    gallery = unit(rng, num_gallery)
    people = np.arange(num_gallery)
    who = rng.integers(0, num_gallery, num_probes)
    probes = gallery[who] + unit(rng, num_probes) * np.float32(2.0)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    name = f"{num_probes:,} probes × {num_gallery:,} gallery, 512-d"
    limit = ("bare matrix product", timed(lambda: bare_product(probes, gallery), repeats)[0])
    nearest_s, found = timed(lambda: nearest(probes, gallery, 10, engine="blocks"), repeats)
    ranks_s, ranks = timed(lambda: enrolled_ranks(probes, who, gallery, people), repeats)
    agree = np.mean((ranks.rank == 1) == (found.rows[:, 0] == who))
    print(f"rank-1 {np.mean(ranks.rank == 1):.4f}; both ways agree on {agree:.6f} of the probes")
    return [
        Figure(f"nearest 10, {name}", "s", nearest_s, limit=limit),
        Figure(f"exact ranks, {name}", "s", ranks_s, limit=limit),
    ]


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


def timed(call: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Seconds of each call, and what the last one gives."""
    times, found = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - started)
    return times, found


if __name__ == "__main__":
    main()
