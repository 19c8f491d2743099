"""Whether objects have the fields that their kinds have, and no other.

Core kinds go through kubernetes-validate. So do the core parts inside custom kinds: pod and job templates. What is left
of a custom kind is checked against the fields listed here, which are those of the kinds' Go types, and against its CRD
where FACEMILL_CRD_DIR names a folder with CRDs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource

from tests.k8s.manifests import Manifest, name_of

CRD_VARIABLE = "FACEMILL_CRD_DIR"
CORE_GROUPS = ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1")
OLDEST = "1.31"

# A leaf says what a value has to be; a mapping which keys there may be; a list of one mapping, that of each item.
POD = "pod template"
JOB = "job template"
ANY = "anything"

_FAILURE_POLICY = {
    "maxRestarts": int,
    "restartStrategy": str,
    "rules": [
        {
            "name": str,
            "action": str,
            "onJobFailureReasons": list,
            "onJobFailureMessagePatterns": list,
            "targetReplicatedJobs": list,
        }
    ],
}
_JOB_SET = {
    "ttlSecondsAfterFinished": int,
    "suspend": bool,
    "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
    "failurePolicy": _FAILURE_POLICY,
    "replicatedJobs": [{"name": str, "replicas": int, "template": JOB}],
}
_RAY_GROUP = {"rayStartParams": dict, "template": POD}
_RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "headGroupSpec": _RAY_GROUP,
    "workerGroupSpecs": [
        {**_RAY_GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int}
    ],
}
FIELDS: dict[tuple[str, str], Any] = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): _JOB_SET,
    ("kubeflow.org/v1", "PyTorchJob"): {
        "elasticPolicy": {
            "minReplicas": int,
            "maxReplicas": int,
            "nProcPerNode": int,
            "maxRestarts": int,
            "rdzvBackend": str,
            "rdzvHost": str,
            "rdzvPort": int,
            "rdzvId": str,
            "rdzvConf": [{"key": str, "value": str}],
        },
        "runPolicy": {
            "activeDeadlineSeconds": int,
            "backoffLimit": int,
            "cleanPodPolicy": str,
            "suspend": bool,
            "ttlSecondsAfterFinished": int,
        },
        "pytorchReplicaSpecs": {"Worker": {"replicas": int, "restartPolicy": str, "template": POD}},
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): {
        "mlPolicy": {"numNodes": int, "torch": {}},
        "template": {"metadata": ANY, "spec": _JOB_SET},
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "runtimeRef": {"apiGroup": str, "kind": str, "name": str},
        "suspend": bool,
        "trainer": {"numNodes": int, "numProcPerNode": int, "resourcesPerNode": dict, "env": list},
    },
    ("ray.io/v1", "RayJob"): {
        "entrypoint": str,
        "submissionMode": str,
        "backoffLimit": int,
        "submitterConfig": {"backoffLimit": int},
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "suspend": bool,
        "submitterPodTemplate": POD,
        "rayClusterSpec": _RAY_CLUSTER,
    },
    ("kueue.x-k8s.io/v1beta2", "Topology"): {"levels": [{"nodeLabel": str}]},
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): {"topologyName": str, "nodeLabels": dict, "tolerations": list},
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): {
        "namespaceSelector": dict,
        "queueingStrategy": str,
        "preemption": {"withinClusterQueue": str, "reclaimWithinCohort": str},
        "resourceGroups": [
            {"coveredResources": list, "flavors": [{"name": str, "resources": [{"name": str, "nominalQuota": ANY}]}]}
        ],
    },
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): {"clusterQueue": str},
}


def versions() -> list[str]:
    """Of Kubernetes: the oldest that we mean, and the newest whose schemas are here."""
    return [OLDEST, utils.major_minor(kubernetes_validate.latest_version())]


def complaints(manifest: Manifest, crds: Path | None = None) -> list[str]:
    """What is wrong with an object's fields; empty where all is well."""
    if crds is None and (named := os.environ.get(CRD_VARIABLE)):
        crds = Path(named)
    if manifest["apiVersion"] in CORE_GROUPS:
        return list(_against_core(manifest, name_of(manifest)))
    kind = (manifest["apiVersion"], manifest["kind"])
    if kind not in FIELDS:
        return [f"{name_of(manifest)}: {kind[0]} {kind[1]} is not a kind we know"]
    rest = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata", "spec")}
    found = [f"{name_of(manifest)}.{key}: no such field" for key in rest]
    found += _against_fields(manifest["spec"], FIELDS[kind], f"{name_of(manifest)}.spec")
    if crds is not None:
        found += _against_crd(manifest, crds)
    return found


def _against_fields(value: Any, expected: Any, where: str) -> Iterator[str]:
    if expected in (POD, JOB):
        kind, version = ("PodTemplate", "v1") if expected == POD else ("Job", "batch/v1")
        body = {"template": value} if expected == POD else value
        yield from _against_core({"apiVersion": version, "kind": kind, **body}, where)
    elif isinstance(expected, dict):
        if not isinstance(value, dict):
            yield f"{where}: expected a mapping"
            return
        for key, child in value.items():
            if key in expected:
                yield from _against_fields(child, expected[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}: no such field"
    elif isinstance(expected, list):
        if not isinstance(value, list):
            yield f"{where}: expected a list"
            return
        for number, child in enumerate(value):
            yield from _against_fields(child, expected[0], f"{where}[{number}]")
    elif expected != ANY and type(value) is not expected:
        yield f"{where}: {value!r}; expected {expected.__name__}"


def _against_core(manifest: Manifest, where: str) -> Iterator[str]:
    for version in versions():
        for reason in _core_errors(version, json.dumps(manifest, sort_keys=True)):
            yield f"{where}: {reason} (Kubernetes {version})"


@cache
def _core_errors(version: str, text: str) -> tuple[str, ...]:
    """As `kubernetes-validate --strict` finds them; its schemas are read once here, not once an object."""
    manifest = json.loads(text)
    group = manifest["apiVersion"].replace(".k8s.io", "").replace("/", "-")
    validator = _core_validator(version, f"{manifest['kind'].lower()}-{group}")
    return tuple(f"{error.json_path}: {error.message}"[:300] for error in validator.iter_errors(manifest))


@cache
def _core_validator(version: str, name: str) -> Any:
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    schema = utils.schema_contents(f"{folder}/{name}.json", version)
    registry = Resource.from_contents(schema) @ _core_registry(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _core_registry(version: str) -> Any:
    definitions = utils.schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    registry: Registry[Any] = Registry()
    return Resource.from_contents(definitions) @ registry


def _against_crd(manifest: Manifest, crds: Path) -> Iterator[str]:
    schema = _crd_schema(crds, manifest["apiVersion"], manifest["kind"])
    if schema is None:
        yield f"{name_of(manifest)}: no CRD of {manifest['apiVersion']} {manifest['kind']} in {crds}"
        return
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        yield f"{name_of(manifest)}: {error.json_path}: {error.message}"[:300]


@cache
def _crd_schema(crds: Path, api_version: str, kind: str) -> Any:
    group, _, version = api_version.partition("/")
    for path in sorted([*crds.rglob("*.yaml"), *crds.rglob("*.yml")]):
        for document in yaml.safe_load_all(path.read_text()):
            if not isinstance(document, dict) or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            if (spec["group"], spec["names"]["kind"]) != (group, kind):
                continue
            for offered in spec["versions"]:
                if offered["name"] == version and offered["served"]:
                    return _strict(offered["schema"]["openAPIV3Schema"], is_root=True)
    return None


def _strict(schema: Any, is_root: bool = False) -> Any:
    """A CRD's schema as the API server reads it with `fieldValidation=Strict`: unknown fields are errors."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    # branches narrow what stands beside them and name some fields only: closing them would refuse the others
    branches = ("allOf", "anyOf", "oneOf", "not")
    strict = {
        key: value if key in branches else _strict(value)
        for key, value in schema.items()
        if key not in ("properties", "format", "required")
    }
    if "required" in schema:  # what has a default is filled in before the API server looks
        properties = schema.get("properties", {})
        strict["required"] = [key for key in schema["required"] if "default" not in properties.get(key, {})]
    if "properties" in schema:
        strict["properties"] = {key: _strict(value) for key, value in schema["properties"].items()}
        is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if not is_open:
            strict["additionalProperties"] = False
            if is_root:
                strict["properties"] |= {"apiVersion": True, "kind": True, "metadata": True}
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        strict["type"] = [schema["type"], "null"]
    return strict
