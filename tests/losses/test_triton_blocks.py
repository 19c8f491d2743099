"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from pipeline.model import triton_blocks, triton_kernels

REPOSITORY = Path(__file__).parents[2]
SHARED_BYTES = 227 * 1024
"""Shared memory that a program may have on an H100."""
SPILLED_BYTES = 32
"""A thread's registers in local memory that do no harm; versions of Triton differ by a few. Too many are hundreds."""
H100 = GPUTarget("cuda", 90, 32)
PRODUCTS = {
    ("bf16", "bf16", "ieee"): "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16",
    ("bf16", "fp32", "ieee"): "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16",
    ("fp32", "fp32", "tf32"): "wgmma.mma_async.sync.aligned.m64n{}k8.f32.tf32.tf32",
    ("fp32", "fp32", "ieee"): "fma.rn.f32",
}


def test_kernels_in_the_interpreter() -> None:
    """In its own process: Triton decides when it is imported whether it compiles or interprets."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/losses/interpreted_triton.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed
    assert int(passed[1]) >= 60
    assert "skipped" not in result.stdout


@pytest.mark.parametrize("types", PRODUCTS, ids="-".join)
@pytest.mark.parametrize("kernel", ["reduce_classes_kernel", "classes_gradient_kernel"])
def test_compiles_for_an_h100(
    kernel: str, types: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To machine code, with the products on the units meant for them, for the first tile shape."""
    compiled = build(kernel, types, 0, kernel == "classes_gradient_kernel", tmp_path, monkeypatch)
    assert compiled.metadata.shared <= SHARED_BYTES
    assert PRODUCTS[types].format(128) in compiled.asm["ptx"]
    assert ("wgmma" in compiled.asm["ptx"]) == (types[2] == "tf32" or types[0] == "bf16")


@pytest.mark.parametrize("kernel", ["reduce_classes_kernel", "classes_gradient_kernel"])
@pytest.mark.parametrize("shape", range(len(triton_kernels._CONFIGS)))
def test_every_tile_shape_compiles(shape: int, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not fit would be passed over in silence when the fastest is sought."""
    compiled = build(kernel, ("bf16", "fp32", "ieee"), shape, kernel == "reduce_classes_kernel", tmp_path, monkeypatch)
    assert compiled.metadata.shared <= SHARED_BYTES
    classes = triton_kernels._CONFIGS[shape].kwargs["BLOCK_CLASSES"]
    assert f"m64n{classes}k16.f32.bf16.bf16" in compiled.asm["ptx"]
    assert registers_spilled_bytes(compiled.asm["cubin"], tmp_path) <= SPILLED_BYTES


def test_the_gradient_through_normalisation_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.knobs.cache.dir", str(tmp_path))
    names = triton_kernels.through_normalisation_kernel.arg_names
    addresses = {"gradient": "*fp32", "centres": "*bf16", "inverse_lengths": "*fp32"}
    constants = {"BLOCK_ROWS": 4, "BLOCK_DIM": 512}
    compiled = compile_kernel(triton_kernels.through_normalisation_kernel, names, addresses, constants, {})
    assert registers_spilled_bytes(compiled.asm["cubin"], tmp_path) <= SPILLED_BYTES


@pytest.mark.parametrize("num_queries", [1, 256, 1024, 4096, 100_000])
@pytest.mark.parametrize("num_rows", [1, 10_000, 1_000_000, 10_000_000])
def test_splits_fill_a_gpu(num_queries: int, num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    split_rows = triton_blocks._split_rows(num_queries, num_rows, torch.device("cuda"))
    assert split_rows % 128 == 0
    num_splits = -(-num_rows // split_rows)
    # a grid's second axis ends at 65,535
    assert num_splits <= 132 * 8
    num_programs = -(-num_queries // 128) * num_splits
    if num_queries >= 256 and num_rows >= 10_000:
        assert num_programs >= 132
    # two float32 a query and split
    assert num_splits * num_queries * 8 <= max(2**21, num_queries * 8)


def test_is_available_only_on_a_gpu() -> None:
    assert not triton_blocks.is_available(torch.device("cpu"))


def test_the_head_needs_no_triton() -> None:
    """Where it cannot be imported, the functions' module can, and says so."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, pipeline.model.partial_fc\n"
        "from pipeline.model import triton_blocks\n"
        "torch.cuda.get_device_capability = lambda device: (9, 0)\n"
        "assert not triton_blocks.is_available(torch.device('cuda'))\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def build(
    kernel: str,
    types: tuple[str, str, str],
    shape: int,
    has_bias: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """With a bias for a D that the tiles do not divide, without one for a D that they do."""
    monkeypatch.setattr("triton.knobs.cache.dir", str(tmp_path))
    function = getattr(triton_kernels, kernel).fn
    config = triton_kernels._CONFIGS[shape]
    vectors = ["inverse_lengths", "greatest", "total", "negative_lse", "lse_gradient", "target_gradient"]
    addresses = {
        **dict.fromkeys(vectors, "*fp32"),
        "queries": f"*{types[0]}",
        "centres": f"*{types[1]}",
        "columns": "*i64",
        "gradient": f"*{types[0]}",
    }
    constants = {"INPUT_PRECISION": types[2], "IS_DIM_WHOLE": not has_bias, "BLOCK_DIM": 64, **config.kwargs}
    if has_bias:
        addresses["bias"] = "*fp32"
    else:
        constants["bias"] = None
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return compile_kernel(function, function.arg_names, addresses, constants, options)


def compile_kernel(
    function: Any, names: list[str], addresses: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> Any:
    """For aligned addresses, and numbers that 16 divides."""
    signature = {name: "constexpr" if name in constants else addresses.get(name, "i32") for name in names}
    divisible = [["tt.divisibility", 16]]
    attributes = {(place,): divisible for place, name in enumerate(names) if name not in constants}
    source = ASTSource(function, signature, {name: constants[name] for name in names if name in constants}, attributes)
    return compile(source, target=H100, options=options)


def registers_spilled_bytes(cubin: bytes, folder: Path) -> int:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(sys.modules["triton"].__path__[0]) / "backends/nvidia/bin/cuobjdump"
    report = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    used = re.search(r"STACK:(\d+)", report)
    assert used
    return int(used[1])
