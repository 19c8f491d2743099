"""Opening a data set of millions of rows, and finding the rows of batches: time and private memory.

    python benchmarks/order.py                                   # 42.5 million rows of a million people
    python benchmarks/order.py --rows 4000000 --people 100000 --json order.json

Writes an index of generated rows (33 bytes each; there are no photos) to --output once, then opens it in fresh
processes, one after another, as a rank does. Private memory is what the process has for itself (RssAnon); mapped pages
are shared by all ranks of a node.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from figures import Figure, write

from pipeline.config.order import IdentityBalancedConfig, OrderConfig, PlainOrderConfig, StreamingOrderConfig
from pipeline.data.dataset_format import INDEX_SCHEMA, CodecInfo, CropInfo, DatasetInfo, DetectorInfo, SplitInfo
from pipeline.data.index_file import seal_index, write_index
from pipeline.data.manifest import open_dataset
from pipeline.data.orders import balanced_parts, build_order

SAMPLES_PER_SHARD = 16384
BATCH = 512
ORDERS: dict[str, OrderConfig] = {
    "plain": PlainOrderConfig(),
    "at most 20 photos a person": PlainOrderConfig(max_photos=20),
    "128 people × 4 photos": IdentityBalancedConfig(num_identities=128, photos_per_identity=4),
    "streaming": StreamingOrderConfig(),
}
UNITS = {
    "time": "s",
    "time to build": "ms",
    "first batch": "ms",
    f"batches of {BATCH}": "batches/s",
    "slowest batch": "ms",
    "batch anywhere": "ms",
    "private memory": "MiB",
}
GOALS = {("open", "time"): "1 s", ("open", "private memory"): "100 MB"}


def main() -> None:
    """Generate the index where it is missing, then measure in another process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=42_500_000)
    parser.add_argument("--people", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=2000, help="batches of 512 to time")
    parser.add_argument("--repeats", type=int, default=5, help="processes")
    parser.add_argument("--output", type=Path, default=Path("build/order-benchmark"))
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.output, arguments.batches)))
        return
    generate(arguments.output, arguments.rows, arguments.people)
    command = [sys.executable, __file__, *sys.argv[1:], "--measure"]
    found = []
    for _ in range(arguments.repeats):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    figures = join(f"{arguments.rows:,} rows of {arguments.people:,} people", found)
    print("\n".join(figure.text() for figure in figures))
    if arguments.json:
        write(arguments.json, figures)


def generate(output: Path, num_rows: int, num_people: int) -> None:
    """Write `dataset.json` and `index.arrow`; photos a person are drawn from a geometric distribution."""
    digest = f"generated-{num_rows}-{num_people}"
    description = output / "dataset.json"
    if description.is_file() and json.loads(description.read_text())["digest"] == digest:
        return
    print(f"writing an index of {num_rows:,} rows", flush=True)
    rng = np.random.default_rng(0)
    weights = np.cumsum(rng.exponential(size=num_people) + 0.1)
    label = np.searchsorted(weights, rng.random(num_rows) * weights[-1]).astype(np.int32)
    label[rng.choice(num_rows, num_people, replace=False)] = np.arange(num_people, dtype=np.int32)
    rows = np.arange(num_rows)
    columns = {
        "shard": (rows // SAMPLES_PER_SHARD).astype(np.int32),
        "jpg_offset": rows % SAMPLES_PER_SHARD * 8192,
        "jpg_size": np.full(num_rows, 7000, np.int32),
        "jpg_crc32": np.zeros(num_rows, np.uint32),
        "label": label,
        "plan_label": label.astype(np.int64),
        "sample_id": rows,
        "by_label": np.argsort(label, kind="stable").astype(np.int32),
    }
    table = seal_index(pa.table(columns, schema=INDEX_SCHEMA), digest, {"train": (0, num_rows)})
    output.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(output / "index.arrow"), "wb") as sink:
        write_index(table, sink)
    num_shards = -(-num_rows // SAMPLES_PER_SHARD)
    split = SplitInfo(
        num_samples=num_rows,
        num_identities=num_people,
        num_rejected=0,
        num_bytes=num_rows * 8192,
        shards=[f"train-{number:06d}" for number in range(num_shards)],
    )
    info = DatasetInfo(
        digest=digest,
        splits={"train": split},
        crop=CropInfo(size_px=112, template=[0.0] * 10),
        codec=CodecInfo(quality=95),
        detector=DetectorInfo(name="none", weights_sha256="", options={}),
        versions={},
        instruction_set="",
        label_map_sha256="",
        seed=0,
        reject_counts={},
    )
    description.write_text(json.dumps(info.model_dump()))


def measure(output: Path, num_batches: int) -> dict[str, dict[str, float]]:
    """Open, build each order, and find the rows of batches at random places of the stream and one after another.

    By what was done and by the keys of `UNITS`.
    """
    before_mib = private_mib()
    opened_s, split = timed(lambda: open_dataset(output).split("train"))
    found = {"open": {"time": opened_s, "private memory": private_mib() - before_mib}}
    for name, config in ORDERS.items():
        before_mib = private_mib()
        built_s, order = timed(
            lambda config=config: build_order(config, split, 0, balanced_parts(config, BATCH, (), 0))
        )
        first_s, _ = timed(lambda order=order: order.rows(0, BATCH))
        times = [timed(lambda order=order, n=n: order.rows(n * BATCH, BATCH))[0] for n in range(num_batches)]
        # a place that nothing is known of, as at a restart
        far = [timed(lambda order=order, n=n: order.rows(n * 7_919 * BATCH, BATCH))[0] for n in range(1, 6)]
        found[name] = {
            "time to build": 1000 * built_s,
            "first batch": 1000 * first_s,
            f"batches of {BATCH}": num_batches / sum(times),
            "slowest batch": 1000 * max(times),
            "batch anywhere": 1000 * statistics.median(far),
            "private memory": private_mib() - before_mib,
        }
    return found


def join(what: str, found: Sequence[dict[str, dict[str, float]]]) -> list[Figure]:
    """Figures of what several processes measured."""
    return [
        Figure(
            f"{what}, {name}: {quantity}",
            UNITS[quantity],
            [one[name][quantity] for one in found],
            goal=GOALS.get((name, quantity), ""),
        )
        for name, quantities in found[0].items()
        for quantity in quantities
    ]


def timed(fn: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what `fn` gives."""
    started = time.perf_counter()
    result = fn()
    return time.perf_counter() - started, result


def private_mib() -> float:
    """Anonymous memory of this process that is resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) / 1024


if __name__ == "__main__":
    main()
