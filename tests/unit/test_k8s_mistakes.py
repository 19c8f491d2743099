"""Each rule for the manifests finds a mistake that is planted for it, and so do the schemas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s import schemas
from tests.k8s.failure_rules import (
    a_set_decides_as_its_pods_do,
    elastic_agents_share_a_store,
    exit_codes_are_understood,
    numbers_agree,
    preemption_costs_no_retry,
    ranks_have_a_gpu_each,
    rules_have_names,
)
from tests.k8s.manifests import (
    Manifest,
    has_kubectl,
    pods,
    render_overlay,
)
from tests.k8s.rules import (
    RULES,
    Rule,
    a_queue_covers_what_is_asked_for,
    a_ttl_needs_shutdown,
    containers_are_locked_down,
    finished_jobs_go,
    images_are_pinned,
    objects_have_a_namespace,
    pods_are_known_by_labels,
    pods_are_not_root,
    pods_hold_no_token,
    priorities_are_there,
    ray_is_fenced_in,
    resources_are_bounded,
    scratch_space_is_bounded,
    services_reach_pods,
    there_is_time_to_save,
    training_is_supervised,
    volumes_are_there,
)

pytestmark = pytest.mark.skipif(not has_kubectl(), reason="kubectl renders the manifests, and is not installed")


def named(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and name in m["metadata"]["name"])


def pod_of(manifests: list[Manifest], kind: str, name: str = "") -> dict[str, Any]:
    owner = named(manifests, kind, name)
    return next(pod.spec for pod in pods(manifests) if pod.owner is owner)


def container_of(manifests: list[Manifest], kind: str, name: str = "") -> dict[str, Any]:
    container: dict[str, Any] = pod_of(manifests, kind, name)["containers"][0]
    return container


def job_of_set(manifests: list[Manifest]) -> dict[str, Any]:
    spec: dict[str, Any] = named(manifests, "JobSet")["spec"]["replicatedJobs"][0]["template"]["spec"]
    return spec


def set_variable(container: dict[str, Any], name: str, value: str) -> None:
    next(entry for entry in container["env"] if entry["name"] == name)["value"] = value


Seed = Callable[[list[Manifest]], object]
MISTAKES: list[tuple[Rule, str, Seed, str]] = [
    (finished_jobs_go, "gpu-8", lambda m: named(m, "Job", "sharding")["spec"].pop("ttlSecondsAfterFinished"), "no ttl"),
    (
        finished_jobs_go,
        "spot",
        lambda m: named(m, "PyTorchJob")["spec"]["runPolicy"].pop("ttlSecondsAfterFinished"),
        "no runPolicy.ttl",
    ),
    (
        a_ttl_needs_shutdown,
        "gpu-8",
        lambda m: named(m, "RayJob")["spec"].update(shutdownAfterJobFinishes=False),
        "without shutdownAfterJobFinishes",
    ),
    (images_are_pinned, "gpu-8", lambda m: container_of(m, "Job").update(image="facemill"), "no tag"),
    (images_are_pinned, "gpu-8", lambda m: container_of(m, "RayJob").update(image="r:5000/f:latest"), "no tag"),
    (images_are_pinned, "gpu-8", lambda m: container_of(m, "RayJob").update(image="r:5000/f"), "no tag"),
    (
        resources_are_bounded,
        "multi-node-rdma",
        lambda m: container_of(m, "JobSet")["resources"]["limits"].pop("memory"),
        "no limit of memory",
    ),
    (
        resources_are_bounded,
        "gpu-8",
        lambda m: container_of(m, "Job")["resources"]["requests"].pop("ephemeral-storage"),
        "requests no ephemeral-storage",
    ),
    (
        resources_are_bounded,
        "multi-node-rdma",
        lambda m: container_of(m, "JobSet")["resources"]["requests"].update({"rdma/ib": "4"}),
        "rdma/ib requested is not its limit",
    ),
    (pods_are_not_root, "spot", lambda m: pod_of(m, "PyTorchJob")["securityContext"].pop("runAsNonRoot"), "runAsNon"),
    (pods_are_not_root, "spot", lambda m: pod_of(m, "Deployment")["securityContext"].update(runAsUser=0), "runAsUser"),
    (pods_are_not_root, "spot", lambda m: pod_of(m, "Job")["securityContext"].pop("seccompProfile"), "seccompProfile"),
    (pods_are_not_root, "spot", lambda m: pod_of(m, "Job").update(hostNetwork=True), "hostNetwork"),
    (
        containers_are_locked_down,
        "gpu-8",
        lambda m: container_of(m, "RayJob")["securityContext"].update(readOnlyRootFilesystem=False),
        "can be written to",
    ),
    (
        containers_are_locked_down,
        "gpu-8",
        lambda m: container_of(m, "Job")["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["IPC_LOCK"]}),
        "capabilities are not dropped",
    ),
    (containers_are_locked_down, "gpu-8", lambda m: container_of(m, "Job")["volumeMounts"].clear(), "nothing to write"),
    (
        pods_hold_no_token,
        "trainjob",
        lambda m: pod_of(m, "TrainingRuntime").pop("automountServiceAccountToken"),
        "token is mounted",
    ),
    (pods_hold_no_token, "spot", lambda m: pod_of(m, "Job").update(serviceAccountName="other"), "account other"),
    (
        scratch_space_is_bounded,
        "gpu-8",
        lambda m: next(v for v in pod_of(m, "Job", "training")["volumes"] if v["name"] == "scratch")[
            "emptyDir"
        ].clear(),
        "no sizeLimit",
    ),
    (
        scratch_space_is_bounded,
        "gpu-8",
        lambda m: container_of(m, "Job", "training").update(
            volumeMounts=[v for v in container_of(m, "Job", "training")["volumeMounts"] if v["mountPath"] != "/dev/shm"]
        ),
        "/dev/shm is not a memory",
    ),
    (
        scratch_space_is_bounded,
        "gpu-8",
        lambda m: container_of(m, "Job", "training")["resources"]["limits"].update(memory="16Gi"),
        "may fill all of the memory",
    ),
    (volumes_are_there, "gpu-8", lambda m: m.remove(named(m, "ConfigMap")), "ConfigMap facemill-recipe is not"),
    (volumes_are_there, "gpu-8", lambda m: m.remove(named(m, "PersistentVolumeClaim", "runs")), "claim facemill-runs"),
    (priorities_are_there, "gpu-8", lambda m: m.remove(named(m, "PriorityClass", "search")), "facemill-search is not"),
    (
        there_is_time_to_save,
        "multi-node-rdma",
        lambda m: pod_of(m, "JobSet").update(terminationGracePeriodSeconds=100),
        "grace period 100 s > shutdown 120 s",
    ),
    (
        there_is_time_to_save,
        "multi-node-rdma",
        lambda m: container_of(m, "JobSet").update(env=[]),
        "shutdown 30 s > save 60 s does not hold",
    ),
    (
        there_is_time_to_save,
        "spot",
        lambda m: named(m, "PyTorchJob")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"].pop(
            "annotations"
        ),
        "does not hold",
    ),
    (there_is_time_to_save, "spot", lambda m: pod_of(m, "Job").pop("terminationGracePeriodSeconds"), "no termination"),
    (
        training_is_supervised,
        "gpu-8",
        lambda m: container_of(m, "Job", "training").update(args=["torchrun", "launch/train.py"]),
        "without pipeline.supervise",
    ),
    (
        pods_are_known_by_labels,
        "gpu-8",
        lambda m: named(m, "Job")["spec"]["template"]["metadata"]["labels"].clear(),
        "lacks the labels",
    ),
    (pods_are_known_by_labels, "gpu-8", lambda m: named(m, "Service")["metadata"].pop("labels"), "no label"),
    (objects_have_a_namespace, "gpu-8", lambda m: named(m, "Job")["metadata"].pop("namespace"), "namespace None"),
    (
        objects_have_a_namespace,
        "kueue",
        lambda m: named(m, "ClusterQueue")["metadata"].update(namespace="facemill"),
        "expected None",
    ),
    (
        services_reach_pods,
        "spot",
        lambda m: named(m, "Service", "rendezvous")["spec"]["selector"].update({"app.kubernetes.io/component": "x"}),
        "no pod has the port store",
    ),
    (
        ray_is_fenced_in,
        "gpu-8",
        lambda m: named(m, "NetworkPolicy", "facemill-tuning")["spec"]["ingress"].append(
            {"from": [{"podSelector": {}}]}
        ),
        "lets others",
    ),
    (
        ray_is_fenced_in,
        "gpu-8",
        lambda m: named(m, "NetworkPolicy")["spec"]["podSelector"].pop("matchExpressions"),
        "lets others",
    ),
    (ray_is_fenced_in, "gpu-8", lambda m: m.remove(named(m, "NetworkPolicy", "facemill-tuning")), "no NetworkPolicy"),
    (ray_is_fenced_in, "gpu-8", lambda m: named(m, "RayJob")["spec"]["rayClusterSpec"].pop("authOptions"), "no token"),
    (
        ray_is_fenced_in,
        "gpu-8",
        lambda m: named(m, "RayJob")["spec"]["rayClusterSpec"].update(rayVersion="2.50.0"),
        "rayVersion 2.50.0",
    ),
    (
        preemption_costs_no_retry,
        "gpu-8",
        lambda m: named(m, "Job", "sharding")["spec"]["podFailurePolicy"]["rules"].pop(0),
        "is not Ignore on DisruptionTarget",
    ),
    (
        preemption_costs_no_retry,
        "multi-node-rdma",
        lambda m: job_of_set(m)["podFailurePolicy"]["rules"][0].update(action="Ignore"),
        "is not FailJob on DisruptionTarget",
    ),
    (
        exit_codes_are_understood,
        "gpu-8",
        lambda m: named(m, "Job", "sharding")["spec"]["podFailurePolicy"]["rules"][2].update(action="FailJob"),
        "bad data (3) is not answered by FailIndex",
    ),
    (
        exit_codes_are_understood,
        "gpu-8",
        lambda m: named(m, "Job", "training")["spec"]["podFailurePolicy"]["rules"].pop(1),
        "preempted (75) is not answered by Ignore",
    ),
    (
        exit_codes_are_understood,
        "trainjob",
        lambda m: container_of(m, "TrainingRuntime").update(name="main"),
        "container node, which is not there",
    ),
    (
        exit_codes_are_understood,
        "kueue",
        lambda m: named(m, "Job", "evaluation")["spec"].pop("podFailurePolicy"),
        "bad configuration (2) does not fail",
    ),
    (
        exit_codes_are_understood,
        "gpu-8",
        lambda m: named(m, "Job", "sharding")["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"].append(
            1
        ),
        "what may pass (1) is not tried again",
    ),
    (
        exit_codes_are_understood,
        "gpu-8",
        lambda m: named(m, "Job", "sharding")["spec"].update(backoffLimitPerIndex=0),
        "what may pass (1) is not tried again",
    ),
    (
        rules_have_names,
        "multi-node-rdma",
        lambda m: named(m, "JobSet")["spec"]["failurePolicy"]["rules"][0].pop("name"),
        "name is ''",
    ),
    (
        rules_have_names,
        "multi-node-rdma",
        lambda m: named(m, "JobSet")["spec"]["failurePolicy"]["rules"][0].update(name="bad-data"),
        "name is 'bad-data'",
    ),
    (
        a_set_decides_as_its_pods_do,
        "multi-node-rdma",
        lambda m: named(m, "JobSet")["spec"]["failurePolicy"]["rules"].reverse(),
        "exit code 2 matching FailJob rule at index 1', expected FailJobSet",
    ),
    (
        a_set_decides_as_its_pods_do,
        "multi-node-rdma",
        lambda m: named(m, "JobSet")["spec"]["failurePolicy"].update(maxRestarts=0),
        "a crash is not tried again",
    ),
    (numbers_agree, "gpu-8", lambda m: named(m, "Job", "sharding")["spec"].update(completions=5), "--num-pods 4 of 5"),
    (numbers_agree, "multi-node-rdma", lambda m: job_of_set(m).update(completions=2), "PET_NNODES 4 of 2"),
    (
        numbers_agree,
        "multi-node-rdma",
        lambda m: named(m, "JobSet")["metadata"].update(name="other"),
        "the first pod is other-node-0-0.other",
    ),
    (
        numbers_agree,
        "gpu-8",
        lambda m: container_of(m, "Job", "sharding")["resources"]["limits"].update(cpu="2"),
        "--workers 4 on 2 cores",
    ),
    (
        ranks_have_a_gpu_each,
        "gpu-8",
        lambda m: set_variable(container_of(m, "Job", "training"), "PET_NPROC_PER_NODE", "4"),
        "4 ranks on 8 GPUs",
    ),
    (
        ranks_have_a_gpu_each,
        "trainjob",
        lambda m: named(m, "TrainJob")["spec"]["trainer"].update(numProcPerNode=4),
        "4 ranks on 8 GPUs",
    ),
    (
        elastic_agents_share_a_store,
        "spot",
        lambda m: named(m, "PyTorchJob")["spec"]["elasticPolicy"].pop("rdzvHost"),
        "is no service",
    ),
    (
        elastic_agents_share_a_store,
        "spot",
        lambda m: named(m, "PyTorchJob")["spec"]["elasticPolicy"]["rdzvConf"].pop(0),
        "without is_host=false",
    ),
    (
        elastic_agents_share_a_store,
        "spot",
        lambda m: named(m, "PyTorchJob")["spec"]["pytorchReplicaSpecs"]["Worker"].update(restartPolicy="ExitCode"),
        "ends the job when a pod is preempted",
    ),
    (
        elastic_agents_share_a_store,
        "trainjob",
        lambda m: container_of(m, "TrainingRuntime")["env"].append({"name": "PET_NNODES", "value": "2"}),
        "PET_NNODES are for the Trainer to set",
    ),
    (
        a_queue_covers_what_is_asked_for,
        "kueue",
        lambda m: named(m, "ClusterQueue")["spec"]["resourceGroups"][0]["flavors"][0]["resources"].pop(2),
        "ephemeral-storage",
    ),
    (a_queue_covers_what_is_asked_for, "kueue", lambda m: job_of_set(m).update(parallelism=4), "asks for 32 nvidia"),
    (a_queue_covers_what_is_asked_for, "kueue", lambda m: named(m, "RayJob")["spec"].pop("suspend"), "for its turn"),
    (
        a_queue_covers_what_is_asked_for,
        "kueue",
        lambda m: named(m, "Job")["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name"),
        "not in the queue",
    ),
]


@pytest.mark.parametrize(
    ("rule", "overlay", "seed", "said"),
    MISTAKES,
    ids=[f"{number}-{mistake[0].__name__}" for number, mistake in enumerate(MISTAKES)],
)
def test_a_mistake_is_found(rule: Rule, overlay: str, seed: Seed, said: str) -> None:
    manifests = copy.deepcopy(render_overlay(overlay))
    seed(manifests)
    assert any(said in line for line in rule(manifests)), list(rule(manifests))


def test_every_rule_has_a_mistake() -> None:
    assert {rule.__name__ for rule in RULES} == {mistake[0].__name__ for mistake in MISTAKES}


@pytest.mark.parametrize(
    ("overlay", "seed", "said"),
    [
        ("gpu-8", lambda m: named(m, "Job")["spec"].update(completion=4), "completion"),
        ("gpu-8", lambda m: container_of(m, "Job").update(imagePullPolicies="Always"), "imagePullPolicies"),
        ("gpu-8", lambda m: named(m, "Job")["spec"].update(backoffLimit="3"), "backoffLimit"),
        ("gpu-8", lambda m: named(m, "RayJob")["spec"].update(ttlSeconds=3), "spec.ttlSeconds: no such field"),
        ("gpu-8", lambda m: container_of(m, "RayJob").update(resource={}), "resource"),
        ("kueue", lambda m: named(m, "ClusterQueue")["spec"].update(cohort="x"), "spec.cohort: no such field"),
        ("kueue", lambda m: named(m, "LocalQueue").update(apiVersion="kueue.x-k8s.io/v1beta1"), "not a kind we know"),
        ("kueue", lambda m: job_of_set(m).update(podFailurePolicies={}), "podFailurePolicies"),
        ("spot", lambda m: named(m, "PyTorchJob")["spec"]["elasticPolicy"].update(rdzvPort="1"), "expected int"),
        (
            "trainjob",
            lambda m: named(m, "TrainingRuntime")["spec"]["mlPolicy"]["torch"].update(numProcPerNode=8),
            "numProcPerNode: no such field",
        ),
    ],
)
def test_a_wrong_field_is_found(overlay: str, seed: Seed, said: str) -> None:
    manifests = render_overlay(overlay)
    seed(manifests)
    found = [line for manifest in manifests for line in schemas.complaints(manifest)]
    assert any(said in line for line in found), found
