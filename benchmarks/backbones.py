"""Draw cost against accuracy: train small variants of several backbones alike, evaluate them, plot multiply-adds.

    OMP_NUM_THREADS=1 python benchmarks/backbones.py --epochs 4 --output build/backbones
    OMP_NUM_THREADS=1 python benchmarks/backbones.py --only iresnet18-w0.25 mobilefacenet-w0.5
    python benchmarks/backbones.py --costs        # the table of docs/backbones.md: full-sized networks, no training

Each variant is trained by `launch/train.py` on the data set's training people, for the same number of epochs and in the
same batches, and measured by `launch/evaluate.py` on pairs of the people it holds out. Writes `backbones.json` and
`backbones.png` in the output. A variant that was measured before with the same settings is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.config.backbones import (
    BackboneConfig,
    InceptionResNetV1Config,
    IResNetConfig,
    MobileFaceNetConfig,
    SpatialTransformerConfig,
    SphereFaceConfig,
    TorchvisionConfig,
    ViTConfig,
)
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.run import environment
from pipeline.model.backbones.cost import BackboneCost, backbone_cost

REPOSITORY = Path(__file__).parents[1]
DIM = 256
SGD = {"kind": "sgd", "lr": 0.1}
# transformers, and networks without batch norm, do not train with SGD's rates
ADAMW = {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.05}
VARIANTS: dict[str, tuple[BackboneConfig, dict[str, Any]]] = {
    "iresnet18-w0.125": (IResNetConfig(depth=18, width=0.125, embedding_dim=DIM), SGD),
    "iresnet18-w0.25": (IResNetConfig(depth=18, width=0.25, embedding_dim=DIM), SGD),
    "iresnet18-w0.25-se": (IResNetConfig(depth=18, width=0.25, se=True, embedding_dim=DIM), SGD),
    "iresnet18-w0.25-aligned": (
        IResNetConfig(depth=18, width=0.25, embedding_dim=DIM, alignment=SpatialTransformerConfig()),
        SGD,
    ),
    "mobilefacenet-w0.5": (MobileFaceNetConfig(width=0.5, embedding_dim=DIM), SGD),
    "sphereface20-w0.25": (SphereFaceConfig(width=0.25, embedding_dim=DIM, neck="bn_dropout_fc_bn"), ADAMW),
    "vit-tiny-w0.5": (ViTConfig(size="tiny", width=0.5, embedding_dim=DIM), ADAMW),
    "resnet18": (TorchvisionConfig(name="resnet18", embedding_dim=DIM, neck="bn_dropout_fc_bn"), SGD),
}
PUBLISHED: list[tuple[str, BackboneConfig, str]] = [
    ("`iresnet`, depth 18", IResNetConfig(depth=18), "Deng 2019, arXiv:1801.07698"),
    ("`iresnet`, depth 34", IResNetConfig(depth=34), ""),
    ("`iresnet`, depth 50", IResNetConfig(depth=50), ""),
    ("`iresnet`, depth 50, `se`", IResNetConfig(depth=50, se=True), "Hu 2018, arXiv:1709.01507"),
    ("`iresnet`, depth 100", IResNetConfig(depth=100), ""),
    ("`iresnet`, depth 200", IResNetConfig(depth=200), ""),
    ("`mobilefacenet`", MobileFaceNetConfig(), "Chen 2018, arXiv:1804.07573"),
    ("`sphereface20`", SphereFaceConfig(), "Liu 2017, arXiv:1704.08063"),
    ("`inception_resnet_v1`", InceptionResNetV1Config(), "Szegedy 2016, arXiv:1602.07261"),
    ("`vit`, tiny", ViTConfig(size="tiny"), "Dosovitskiy 2021, arXiv:2010.11929"),
    ("`vit`, small", ViTConfig(size="small"), ""),
    ("`vit`, base", ViTConfig(size="base"), ""),
    ("`vit`, large", ViTConfig(size="large"), ""),
    ("`torchvision`, resnet50", TorchvisionConfig(name="resnet50"), "He 2016, arXiv:1512.03385"),
]


def main() -> None:
    """Parse the command line, then count, or train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/demo/data"), help="a data set with a split `val`")
    parser.add_argument("--output", type=Path, default=Path("build/backbones"))
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch", type=int, default=64, help="global batch, in one micro-batch")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--costs", action="store_true", help="print the table of full-sized networks at 112 px, stop")
    arguments = parser.parse_args()
    if arguments.costs:
        print(cost_table())
        return
    settings = {"data": open_dataset(str(arguments.data), None).info.digest} | {
        name: getattr(arguments, name) for name in ("epochs", "batch")
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "backbones.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "variants": {}}
    for name in arguments.only:
        if name not in found["variants"]:
            found["variants"][name] = measure(name, arguments)
            found["processor"] = processor()
            path.write_text(json.dumps(found, indent=1))
        print(name, json.dumps(found["variants"][name]), flush=True)
    plot(found["variants"], arguments.output / "backbones.png")


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Train and evaluate one variant; gives its cost, accuracy and times."""
    config, optimizer = VARIANTS[name]
    run = arguments.output / name
    recipe = arguments.output / f"{name}.yaml"
    tree = {
        "output": str(run),
        "data": {"path": str(arguments.data), "num_threads": 1},
        "backbone": config.model_dump(),
        "head": {"margin": {"kind": "cosface", "scale": 32, "margin": 0.2}},
        "optim": {"backbone": optimizer, "head": SGD},
        "schedule": {"kind": "polynomial", "warmup_epochs": 0.5},
        "training": {"epochs": arguments.epochs, "global_batch": arguments.batch, "local_batch": arguments.batch},
        "checkpoint": {"every_epochs": arguments.epochs, "keep": 1},
        "monitor": {"tensorboard": False},
    }
    recipe.write_text(json.dumps(tree, indent=1))  # which is YAML, without aliases
    began = time.perf_counter()
    launch("train.py", "--config", str(recipe))
    train_s = time.perf_counter() - began
    launch("evaluate.py", "--model", str(run), "--data", str(arguments.data))
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())["verification"]
    crop_px = open_dataset(str(arguments.data), None).info.crop.size_px
    cost = backbone_cost(config, crop_px)
    return {
        "num_parameters": cost.num_parameters,
        "multiply_adds": cost.multiply_adds,
        "activation_bytes": cost.activation_bytes,
        "crop_px": crop_px,
        "accuracy": evaluation["accuracy"]["mean"],
        "accuracy_std": evaluation["accuracy"]["std"],
        "auc": evaluation["auc"],
        "train_s": round(train_s, 1),
    }


def launch(script: str, *arguments: str) -> None:
    """Run one of the launch scripts; its output is shown where it fails."""
    command = [sys.executable, str(REPOSITORY / "launch" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def processor() -> str:
    """This machine's, as in reports."""
    import torch

    return environment(torch.device("cpu")).device


def plot(variants: dict[str, dict[str, float]], path: Path) -> None:
    """Multiply-adds of a photo, on a logarithmic axis, against accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, found in variants.items():
        giga, accuracy = found["multiply_adds"] / 1e9, 100 * found["accuracy"]
        axes.errorbar(giga, accuracy, yerr=100 * found["accuracy_std"], fmt="o", capsize=3, color="#2f6f8f")
        axes.annotate(name, (giga, accuracy), xytext=(7, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("multiply-adds of a photo, billions")
    axes.set_ylabel("verification accuracy, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def cost_table() -> str:
    """Markdown: every kind at full size, 112 px, 512 numbers."""
    lines = [
        "| `kind` | parameters, million | multiply-adds, billion | activations of a photo, fp32 MiB | paper |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(lines + [cost_row(name, backbone_cost(config, 112), paper) for name, config, paper in PUBLISHED])


def cost_row(name: str, cost: BackboneCost, paper: str) -> str:
    """A line of the table."""
    return (
        f"| {name} | {cost.num_parameters / 1e6:.2f} | {cost.multiply_adds / 1e9:.2f} "
        f"| {cost.activation_bytes / 2**20:.1f} | {paper} |"
    )


if __name__ == "__main__":
    main()
