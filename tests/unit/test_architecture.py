"""Imports point down, heavy libraries have one home, and texts carry no traces of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# a layer may import itself, its own line's names and what stands in lines above it
LAYERS = [
    [
        "pipeline.config",
        "pipeline.atomic_write",
        "pipeline.process_tree",
        "pipeline.read_ahead",
        "pipeline.ray_cluster",
        "pipeline.input_spec",
    ],
    ["pipeline.meet", "pipeline.progress", "pipeline.json_lines"],
    ["pipeline.dist", "pipeline.monitor", "pipeline.data.retry", "pipeline.data.remote", "pipeline.data.mirror"],
    ["pipeline.lock"],
    ["pipeline.data.dataset_format", "pipeline.data.index_file", "pipeline.data.manifest", "pipeline.data.tombstones"],
    ["pipeline.data"],
    ["pipeline.model"],
    ["pipeline.checkpoint"],
    ["pipeline.checkpoint_writer", "pipeline.onnx_weights"],
    ["pipeline.evaluate"],
    ["pipeline.inputs"],
    ["pipeline.export"],
    ["pipeline.engine"],
    ["pipeline.tuning"],
    ["pipeline.interop"],
]
FORBIDDEN = {
    ("pipeline.data", "pipeline.model"),
    ("pipeline.model", "pipeline.data"),
    ("pipeline.evaluate", "pipeline.engine"),
    ("pipeline.evaluate", "preprocess"),
}
HOMES = {
    "nvidia": {"pipeline.data.decode_dali"},
    "deepspeed": {"pipeline.engine.deepspeed"},
    "ray": {
        "pipeline.ray_cluster",
        "preprocess.drivers.ray_cluster",
        *(
            f"pipeline.tuning.{name}"
            for name in ("cluster", "no_retry", "reasons", "search", "table", "translate", "trial")
        ),
    },
    "timm": {"pipeline.model.backbones.timm_net"},
    "triton": {"pipeline.model.triton_kernels"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for root in ("pipeline", "preprocess"):
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> int | None:
    matches = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    return max(matches)[1] if matches else None


def test_imports_point_down() -> None:
    wrong = []
    for name, path in modules():
        for target in imports(path):
            ours, theirs = layer_of(name), layer_of(target)
            if ours is not None and theirs is not None and theirs > ours:
                wrong.append(f"{name} imports {target}")
            wrong += [
                f"{name} imports {target}"
                for source, forbidden in FORBIDDEN
                if name.startswith(source + ".")
                and target.startswith(forbidden + ".")
                and "data.manifest" not in target
            ]
    assert wrong == []


def test_preprocess_uses_only_the_contract() -> None:
    allowed = (
        "pipeline.atomic_write",
        "pipeline.config",
        "pipeline.data.dataset_format",
        "pipeline.data.manifest",
        "pipeline.data.pair_bin",
        "pipeline.data.stage_times",
        "pipeline.data.tombstones",
        "pipeline.ray_cluster",
    )
    # commands that show what the training side does with a data set
    of_data = ("preprocess.commands.bench", "preprocess.commands.preview", "preprocess.commands.verify")
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        if name.startswith("preprocess")
        for target in imports(path)
        if (
            target.startswith("pipeline.")
            and not target.startswith(allowed)
            and target != "pipeline.data"
            and not (name in of_data and target.startswith("pipeline.data."))
        )
        or target.partition(".")[0] in ("torch", "torchvision")
    ]
    assert wrong == []


def test_heavy_libraries_have_one_home() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        if name not in HOMES.get(target.partition(".")[0], {name})
    ]
    assert wrong == []


def test_what_all_processes_of_a_trial_load_is_light() -> None:
    """Drivers and Ray Train's controllers load it, one after another, before the workers are started."""
    code = "import sys, pipeline.tuning.trial; print({'torch', 'pyarrow', 'ray'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "preprocess.cli", "--help"],
        ["launch/train.py", "--help"],
        ["launch/import_arcface.py", "--help"],
        ["launch/extend_head.py", "--help"],
        ["launch/embed.py", "--help"],
        ["launch/compare.py", "--help"],
        ["launch/tune.py", "--help"],
    ],
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert loaded & {"torch", "cv2", "numpy", "pyarrow", "ray", "deepspeed"} == set()
    assert "Usage" in result.stdout


def test_tracked_texts_carry_no_machine_and_no_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    # where this checkout and its user live, whichever machine that is; only as the beginning of an absolute path
    places = {REPOSITORY, REPOSITORY.parent, Path.home()} - {Path("/")}
    beginnings = "|".join(re.escape(f"{place}/") for place in places)
    traces = re.compile(rf"(?<![\w./-])(?:{beginnings})|files\.pythonhosted|pypi\.org/simple|index-url")
    wrong = []
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix in {".jpg", ".png"} or path == Path(__file__) or not path.is_file():
            continue
        wrong += [f"{name}: {found}" for found in traces.findall(path.read_text(errors="ignore"))]
    assert wrong == []
