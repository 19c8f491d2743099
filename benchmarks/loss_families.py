"""Train a model of each family of losses on the same photos for the same number of epochs; a table of what they reach.

    preprocess shard PHOTOS build/celeba --size 64
    preprocess shard LFW build/lfw --size 64
    python benchmarks/loss_families.py --data build/celeba --test build/lfw --pairs lfw/pairs.txt --seeds 0 1

Every run is `configs/small_real_cpu.yaml` with another head, in one process of one thread; `--jobs` of them side by
side. A run that is finished is not repeated. Time is processor time, so that it does not
depend on what else the machine does. Accuracy is the mean of ten folds; with 600 pairs its standard error is 1.5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "configs" / "small_real_cpu.yaml"
# pairs are found within a global batch, so the losses that live on them get a larger one
METRIC = ["training.global_batch=256", "optim.backbone.kind=adamw", "optim.backbone.lr=1e-3"]
BALANCED = [
    *METRIC,
    "data.order.kind=identity_balanced",
    "data.order.num_identities=32",
    "data.order.photos_per_identity=8",
]
SUM = ["head.kind=sum"]
SOFTMAX_PART = [
    "head.parts.softmax.head.kind=margin_softmax",
    "head.parts.softmax.head.margin.kind=cosface",
    "head.parts.softmax.head.margin.scale=32",
    "head.parts.softmax.head.margin.margin=0.3",
]
FAMILIES: dict[str, tuple[str, list[str]]] = {
    "margin": ("CosFace, s 32, m 0.3", []),
    "margin, ArcFace": ("ArcFace, s 32, m 0.3", ["head.margin.kind=arcface", "head.margin.margin=0.3"]),
    "adaptive": (
        "AdaFace, s 32, m 0.3",
        ["head.margin.kind=adaface", "head.margin.scale=32", "head.margin.margin=0.3"],
    ),
    "contrastive": ("DeepID2's, m 1", [*METRIC, "head.kind=contrastive"]),
    "triplet": ("semi-hard, α 0.2", [*METRIC, "head.kind=triplet"]),
    "margin-based": ("α 0.2, β learnt", [*METRIC, "head.kind=margin_based"]),
    "contrastive, 32 × 8": ("DeepID2's, m 1", [*BALANCED, "head.kind=contrastive"]),
    "triplet, 32 × 8": ("semi-hard, α 0.2", [*BALANCED, "head.kind=triplet"]),
    "margin-based, 32 × 8": ("α 0.2, β learnt", [*BALANCED, "head.kind=margin_based"]),
    "centre + softmax": (
        "CosFace + centre loss, λ 0.003",
        [*SUM, *SOFTMAX_PART, "head.parts.centre.head.kind=centre"],
    ),
    "softmax, then triplet": (
        "CosFace; triplets join and take over",
        [
            *SUM,
            *SOFTMAX_PART,
            "training.global_batch=256",
            "optim.backbone.lr=0.2",
            "optim.head.lr=0.2",
            "head.parts.softmax.weight=[[0, 1], [{half}, 1], [{late}, 0]]",
            "head.parts.triplet.head.kind=triplet",
            "head.parts.triplet.weight=[[0, 0], [{half}, 0], [{late}, 1]]",
        ],
    ),
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set to train on")
    parser.add_argument("--test", type=Path, required=True, help="data set, or folder, of the pairs' photos")
    parser.add_argument("--pairs", type=Path, required=True, help="LFW-style pairs.txt")
    parser.add_argument("--output", type=Path, default=Path("build/families"))
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), help="some of the families")
    arguments = parser.parse_args()
    chosen = arguments.only or list(FAMILIES)
    runs = [(name, seed) for seed in arguments.seeds for name in chosen]
    failed = threading.Event()

    def run(job: tuple[str, int]) -> None:
        if failed.is_set():
            return
        try:
            train_and_test(arguments, *job)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, runs))
    print(table(arguments.output, chosen, arguments.seeds, arguments.epochs))


def train_and_test(arguments: argparse.Namespace, name: str, seed: int) -> None:
    """One run, unless its result stands there already."""
    output = run_directory(arguments.output, name, seed)
    if (output / "result.json").exists():
        return
    epochs = arguments.epochs
    overrides = [text.format(half=epochs / 2, late=0.8 * epochs) for text in FAMILIES[name][1]]
    common = [f"data.path={arguments.data}", f"output={output}", f"seed={seed}", f"training.epochs={epochs}"]
    python = [sys.executable]
    train = [*python, "launch/train.py", "--config", str(RECIPE), *common, *overrides]
    time_file = output.with_name(output.name + ".cpu_s")
    if not time_file.exists():  # a repeated test does not train again
        time_file.write_text(str(timed(train, output.with_suffix(".log"))))
    cpu_s = float(time_file.read_text())
    test = ["--model", output, "--data", arguments.test, "--pairs", arguments.pairs, "--output", output / "test"]
    timed([*python, "launch/evaluate.py", *map(str, test)], output.with_suffix(".log"))
    found = json.loads((output / "test" / "evaluation.json").read_text())["verification"]
    result = {"accuracy": found["accuracy"]["mean"], "auc": found["auc"], "cpu_s": cpu_s, "epochs": epochs}
    (output / "result.json").write_text(json.dumps(result))
    print(f"{name}, seed {seed}: accuracy {result['accuracy']:.3f}, {cpu_s:.0f} s of processor time", flush=True)


def timed(command: Sequence[str], log: Path) -> float:
    """Run to success; gives the processor time it took, in seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}\nsee {log}")
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_utime + usage.ru_stime


def run_directory(output: Path, name: str, seed: int) -> Path:
    """Where a run lives."""
    return output / f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def table(output: Path, names: list[str], seeds: list[int], epochs: float) -> str:
    """The results as Markdown."""
    lines = [
        f"{epochs:g} epochs, {len(seeds)} seeds each",
        "",
        "| family | loss | accuracy by seed | mean | AUC | processor time |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        found = [json.loads((run_directory(output, name, seed) / "result.json").read_text()) for seed in seeds]
        accuracies = [result["accuracy"] for result in found]
        spread = f" ± {statistics.stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
        each = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        auc = statistics.mean(result["auc"] for result in found)
        minutes = statistics.mean(result["cpu_s"] for result in found) / 60
        mean = statistics.mean(accuracies)
        lines.append(f"| {name} | {FAMILIES[name][0]} | {each} | {mean:.3f}{spread} | {auc:.3f} | {minutes:.1f} min |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
