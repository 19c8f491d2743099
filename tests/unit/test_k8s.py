"""The manifests of k8s/: they render, have the fields their kinds have, keep our rules and run what is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load_config, validate_tree
from pipeline.config.search import SearchConfig
from pipeline.tuning.space import check_search
from tests.k8s import commands, schemas
from tests.k8s.manifests import (
    OVERLAYS,
    REPOSITORY,
    has_kubectl,
    of_kind,
    pods,
    render,
    render_overlay,
)
from tests.k8s.rules import (
    RULES,
)

pytestmark = pytest.mark.skipif(not has_kubectl(), reason="kubectl renders the manifests, and is not installed")


def test_every_overlay_is_known() -> None:
    assert {"single-node-cpu", "gpu-8", "multi-node-rdma", "spot", "kueue", "trainjob"} == set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_fields_are_those_of_their_kinds(overlay: str) -> None:
    assert [line for manifest in render_overlay(overlay) for line in schemas.complaints(manifest)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_our_rules_hold(overlay: str) -> None:
    manifests = render_overlay(overlay)
    assert [f"{rule.__name__}: {line}" for rule in RULES for line in rule(manifests)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_are_there(overlay: str) -> None:
    wrong = []
    for where, command in commands.commands(render_overlay(overlay)):
        wrong += [f"{where}: {line}" for line in commands.complaints(command)]
    assert wrong == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_recipes_load_and_lie_where_the_pods_look(overlay: str, tmp_path: Path) -> None:
    manifests = render_overlay(overlay)
    (recipes,) = of_kind(manifests, "ConfigMap")
    (tmp_path / "train.yaml").write_text(recipes["data"]["train.yaml"])
    config = load_config(tmp_path / "train.yaml", [])
    assert str(config.data.path) == "/data/set"
    (evaluation,) = [m for m in of_kind(manifests, "Job") if m["metadata"]["name"] == "facemill-evaluation"]
    arguments = evaluation["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--model") + 1] == str(config.output)
    for pod in pods(manifests):
        for container in pod.containers:
            if "/recipes/train.yaml" in container.get("args", []):
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                volume = next(each for each in pod.spec["volumes"] if each["name"] == mounts["/recipes"])
                assert volume["configMap"]["name"] == recipes["metadata"]["name"]
                assert (config.device == "cuda") == ("nvidia.com/gpu" in container["resources"]["limits"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_searches_load_and_fit_their_workers(overlay: str, tmp_path: Path) -> None:
    manifests = render_overlay(overlay)
    jobs = of_kind(manifests, "RayJob")
    (recipes,) = of_kind(manifests, "ConfigMap")
    assert ("search.yaml" in recipes["data"]) == bool(jobs)
    for job in jobs:
        (tmp_path / "train.yaml").write_text(recipes["data"]["train.yaml"])
        tree = yaml.safe_load(recipes["data"]["search.yaml"])
        assert tree["recipe"] == "/recipes/train.yaml"
        search = validate_tree(SearchConfig, {**tree, "recipe": str(tmp_path / "train.yaml")}, "search.yaml")
        check_search(search)
        (pod,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        limits = pod["resources"]["limits"]
        assert search.workers.count * search.workers.cpus <= float(limits["cpu"])
        assert search.workers.count * search.workers.gpus <= float(limits["nvidia.com/gpu"])
        assert {"/recipes", "/data", "/runs"} <= {mount["mountPath"] for mount in pod["volumeMounts"]}


@pytest.mark.parametrize("component", ["s3-key", "s3-identity"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_components_fit_every_overlay(component: str, overlay: str) -> None:
    folder = REPOSITORY / "build" / "k8s-tests" / f"{overlay}-{component}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(
        f"resources: [../../../k8s/overlays/{overlay}]\ncomponents: [../../../k8s/components/{component}]\n"
    )
    manifests = render(folder)
    assert [line for manifest in manifests for line in schemas.complaints(manifest)] == []
    assert [f"{rule.__name__}: {line}" for rule in RULES for line in rule(manifests)] == []
    readers = [pod for pod in pods(manifests) if any(v["name"] == "recipes" for v in pod.spec.get("volumes", []))]
    assert readers
    for pod in readers:
        (container,) = pod.containers
        assert "/cache" in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert bool(container.get("envFrom")) == (component == "s3-key")


@pytest.mark.parametrize("page", ["k8s/README.md", "docs/kubernetes.md"])
def test_pages_name_what_is_there(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    manifests = [manifest for overlay in OVERLAYS for manifest in render_overlay(overlay)]
    names = {manifest["metadata"]["name"] for manifest in manifests}
    components = {manifest["metadata"]["labels"]["app.kubernetes.io/component"] for manifest in manifests}
    assert set(re.findall(r"app\.kubernetes\.io/component=(\w+)", text)) <= components
    made_here = {"facemill-training-node-0-0", "facemill-s3"}  # a pod's host name; a secret that the reader makes
    assert set(re.findall(r"facemill-[a-z0-9-]+", text)) <= names | made_here
    for path in re.findall(r"(?:k8s|docs|launch|tests)/[\w./-]+\w", text):
        assert (REPOSITORY / path).exists() or "ours" in path, path
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPOSITORY / page).parent.joinpath(link).exists(), link


def test_the_readmes_commands_are_there() -> None:
    text = (REPOSITORY / "k8s" / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"(?:\$IMAGE|exec copy --) +((?:python|preprocess) [^\n#]*)", text)
    assert len(found) == 4
    assert [line for command in found for line in commands.complaints(tuple(command.split()))] == []


def test_the_readme_lists_every_overlay_and_applies_every_step() -> None:
    text = (REPOSITORY / "k8s" / "README.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == set(OVERLAYS)
    steps = {
        manifest["metadata"]["labels"]["app.kubernetes.io/component"]
        for overlay in OVERLAYS
        for manifest in render_overlay(overlay)
    }
    assert set(re.findall(r"kubectl apply -f facemill.yaml -l app\.kubernetes\.io/component=(\w+)", text)) == steps


def test_make_renders_with_an_image() -> None:
    command = ["make", "-s", "k8s-render", "OVERLAY=gpu-8", "IMAGE=registry.example.com:5000/team/facemill:1.2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    manifests = [document for document in yaml.safe_load_all(done.stdout) if document]
    images = {container["image"] for pod in pods(manifests) for container in pod.containers}
    assert images == {"registry.example.com:5000/team/facemill:1.2"}


@pytest.mark.parametrize(
    ("overlay", "image", "said"),
    [("gpu", "a:1", "expected one of"), ("gpu-8", "a", "expected NAME:TAG"), ("gpu-8", "a:latest", "not latest")],
)
def test_make_refuses(overlay: str, image: str, said: str) -> None:
    command = ["make", "-s", "k8s-render", f"OVERLAY={overlay}", f"IMAGE={image}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    assert said in done.stderr
    assert not done.stdout


CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: kueue.x-k8s.io
  names: {kind: LocalQueue}
  versions:
    - name: v1beta2
      served: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              required: [clusterQueue, weight]
              properties:
                clusterQueue: {type: string, maxLength: 9}
                weight: {default: 1, x-kubernetes-int-or-string: true}
"""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"clusterQueue": "facemill"}, ""),
        ({"clusterQueue": "facemill", "weight": "2"}, ""),
        ({"clusterQueue": "facemills!"}, "too long"),
        ({}, "'clusterQueue' is a required property"),
    ],
)
def test_crds_are_asked_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, object], said: str
) -> None:
    (tmp_path / "queue.yaml").write_text(CRD)
    monkeypatch.setenv(schemas.CRD_VARIABLE, str(tmp_path))
    monkeypatch.setitem(
        schemas.FIELDS, ("kueue.x-k8s.io/v1beta2", "LocalQueue"), {"clusterQueue": str, "weight": schemas.ANY}
    )
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": "q"}, "spec": spec}
    found = schemas.complaints(queue)
    assert (not found) if not said else any(said in line for line in found), found
    unknown = schemas.complaints({**queue, "spec": {**spec, "clusterQueues": "x"}})
    assert any("clusterQueues" in line for line in unknown)
    assert any("no CRD" in line for line in schemas.complaints({**queue, "kind": "Topology", "spec": {"levels": []}}))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python launch/trian.py --config /recipes/train.yaml", "no such script"),
        ("python -m pipeline.supervise -- torchrun launch/train.py --konfig x", "knows no --konfig"),
        ("python launch/train.py --config configs/none.yaml", "no such recipe"),
        ("preprocess shard a b --driver=index --pods=3", "knows no --pods"),
        ("preprocess shart a b", "has no help"),
        ("sleep infinity", "not a command of ours"),
    ],
)
def test_a_wrong_command_is_found(command: str, said: str) -> None:
    assert any(said in line for line in commands.complaints(tuple(command.split())))
