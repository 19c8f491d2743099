"""A training step of the backbone alone, forward, backward and optimizer, in the ways that it can be computed.

    python benchmarks/backbone_step.py                                      # on a CPU, four backbones
    python benchmarks/backbone_step.py --backbones iresnet18 --ways NCHW compiled
    python benchmarks/backbone_step.py --device cuda --batch 128 --backbones iresnet50 iresnet100 vit-base

Ours is what the trainer does on the device: images and weights channels last, fused SGD, float32 on a CPU and bf16
autocast on a GPU. Every other way differs from it in one thing. They take turns in one process, on a CPU on one thread,
as a rank of the demo has. Compiling for a CPU takes minutes a backbone, and a CPU without instructions for bf16 takes
ten times as long for it as for float32, so there these are measured only where asked for. The limit is the rate of one
large matrix product of the same arithmetic, measured in every turn, over the products of a photo: two FLOPs a
multiply-add, and a backward pass of twice the forward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from figures import Figure, write
from torch import Tensor

from pipeline.config.backbones import BackboneConfig, IResNetConfig, MobileFaceNetConfig, ViTConfig
from pipeline.config.engine import Precision
from pipeline.config.optim import SGDConfig
from pipeline.engine import optim
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.network import Network
from pipeline.model.backbones import build_backbone
from pipeline.model.backbones.cost import backbone_cost

CROP_PX = 112
BACKBONES: dict[str, BackboneConfig] = {
    "iresnet18": IResNetConfig(depth=18),
    "iresnet50": IResNetConfig(depth=50),
    "iresnet100": IResNetConfig(depth=100),
    "mobilefacenet": MobileFaceNetConfig(),
    "vit-small": ViTConfig(size="small"),
    "vit-base": ViTConfig(size="base"),
}
DEFAULT_BACKBONES = ["iresnet18", "iresnet50", "mobilefacenet", "vit-small"]
PRODUCT_SIZES = {"cpu": 2048, "cuda": 8192}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    precision: Precision
    memory_format: torch.memory_format = torch.channels_last
    compiles: bool = False
    is_fused: bool = True


def ways(device: str) -> dict[str, Way]:
    """By name; the first is ours."""
    ours = Way("bf16" if device == "cuda" else "fp32")
    other: Precision = "fp32" if device == "cuda" else "bf16"
    return {
        "ours": ours,
        "NCHW": replace(ours, memory_format=torch.contiguous_format),
        "compiled": replace(ours, compiles=True),
        other: replace(ours, precision=other),
        "optimizer not fused": replace(ours, is_fused=False),
    }


def unfit(device: str) -> set[str]:
    """Ways that take minutes here."""
    if device == "cuda":
        return set()
    flags = Path("/proc/cpuinfo").read_text()
    return {"compiled"} if "avx512_bf16" in flags or "amx_bf16" in flags else {"compiled", "bf16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=DEFAULT_BACKBONES)
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="beside ours; default: all that pay on the device")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a turn; default: 1 on a CPU, 20 on a GPU")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    known = ways(arguments.device)
    names = arguments.ways or known.keys() - unfit(arguments.device)
    unknown = set(names) - set(known)
    if unknown:
        parser.error(f"--ways: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    wanted = {name: way for name, way in known.items() if name in {"ours", *names}}
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device(arguments.device)
    num_steps = arguments.steps or (20 if arguments.device == "cuda" else 1)
    figures = []
    for name in arguments.backbones:
        figures.append(compare(name, wanted, device, arguments.batch, arguments.repeats, num_steps))
        print(figures[-1].text(), flush=True)
    if arguments.json:
        write(arguments.json, figures)


def compare(
    name: str, wanted: dict[str, Way], device: torch.device, batch: int, repeats: int, num_steps: int
) -> Figure:
    """Take turns; photos/s by way, and the limit."""
    cost = backbone_cost(BACKBONES[name], CROP_PX)
    flops = 6.0 * cost.multiply_adds
    steps = {way: make_step(BACKBONES[name], how, device, batch) for way, how in wanted.items()}
    for step in steps.values():
        step()  # compiles, lays out the optimizer's state
    rates: dict[str, list[float]] = {way: [] for way in steps}
    peaks = []
    for _ in range(repeats):
        for way, step in steps.items():
            rates[way].append(num_steps * batch / seconds(step, device, num_steps))
        peaks.append(product_rate(device, TYPES[wanted["ours"].precision]) / flops)
    own = rates.pop("ours")
    what = f"{name}, {CROP_PX} px, batch {batch}, {flops / 1e9:.1f} GFLOP a photo"
    return Figure(what, "photos/s", own, rates, ("matrix product", peaks))


def make_step(config: BackboneConfig, way: Way, device: torch.device, batch: int) -> Callable[[], None]:
    """A step on the same random crops, over and over, at a rate that moves nothing: weights stay what they are."""
    model = build_backbone(config, CROP_PX, seed=0).to(device).to(memory_format=way.memory_format)
    network = Network(model, way.precision, device, way.compiles)
    parameters = dict(model.named_parameters())
    optimizer = optim.build_optimizer(SGDConfig(), parameters)
    if not way.is_fused:
        groups = [{"params": group["params"]} for group in optimizer.param_groups]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4, fused=False, foreach=False)
    optim.set_lr(optimizer, 0.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, CROP_PX, CROP_PX), dtype=torch.uint8, generator=generator).to(device)
    images = images.contiguous(memory_format=way.memory_format)
    gradient = torch.randn(batch, config.embedding_dim, generator=generator).to(device)

    def step() -> None:
        embeddings: Tensor = network(images)
        with network.products():
            embeddings.backward(gradient.to(embeddings.dtype))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None], device: torch.device, num_steps: int) -> float:
    """Of some steps one after another."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(num_steps):
        step()
    synchronise(device)
    return time.perf_counter() - began


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product."""
    size = PRODUCT_SIZES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.mm(left, right) if device.type == "cuda" else torch.zeros(size, size, dtype=dtype)

    def product() -> None:
        torch.mm(left, right, out=out)

    return 2.0 * size**3 / seconds(product, device, 1)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
