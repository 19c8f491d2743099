"""Rendered manifests, and what stands in them: objects, pods, containers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
OVERLAYS = sorted(path.parent.name for path in (REPOSITORY / "k8s" / "overlays").glob("*/kustomization.yaml"))

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod template somewhere in an object."""

    where: str
    """The object and the path in it, for people."""
    owner: Manifest
    template: Manifest
    """The mapping that holds `spec`, and `metadata` if any."""

    @property
    def spec(self) -> Manifest:
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template.get("metadata", {}).get("labels", {})
        return labels

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def has_kubectl() -> bool:
    return shutil.which("kubectl") is not None


def render(folder: Path) -> list[Manifest]:
    """The objects of a folder as `kubectl kustomize` prints them; a copy of one's own."""
    return [json.loads(text) for text in _rendered(folder)]


def render_overlay(name: str) -> list[Manifest]:
    return render(REPOSITORY / "k8s" / "overlays" / name)


@cache
def _rendered(folder: Path) -> tuple[str, ...]:
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings: a deprecated field
    return tuple(json.dumps(document) for document in yaml.safe_load_all(done.stdout))


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(manifests: list[Manifest]) -> list[Pod]:
    return [pod for manifest in manifests for pod in _pods_in(manifest, manifest, name_of(manifest))]


def _pods_in(node: Any, owner: Manifest, where: str) -> Iterator[Pod]:
    if isinstance(node, dict):
        spec = node.get("spec")
        if isinstance(spec, dict) and isinstance(spec.get("containers"), list):
            yield Pod(where, owner, node)
            return
        for key, child in node.items():
            yield from _pods_in(child, owner, f"{where}.{key}")
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from _pods_in(child, owner, f"{where}[{number}]")


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def environment(container: Manifest) -> dict[str, str | None]:
    """Its variables; None for what stands elsewhere."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def words(container: Manifest) -> list[str]:
    """What it runs, without the image's entry point."""
    return [*container.get("command", []), *container.get("args", [])]


def quantity(text: str | int) -> float:
    """Bytes, cores or pieces of a resource quantity such as 500m, 8Gi."""
    text = str(text)
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * units[unit]
    return float(text)
