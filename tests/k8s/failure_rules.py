"""Rules about what a failed pod costs: a preemption nothing, a mistake no second try, and all numbers agree."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.k8s.manifests import Manifest, Pod, environment, name_of, of_kind, pods, quantity, words
from tests.k8s.rules import BAD_CONFIGURATION, BAD_DATA, FAILED, PREEMPTED, RULE_NAME, rule, trains

Actions = dict[str, list[int]]


def _job_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, bool]]:
    """Job specs, and whether a set's rules decide after them."""
    for manifest in of_kind(manifests, "Job"):
        yield name_of(manifest), manifest["spec"], False
    for manifest, sets in _sets(manifests):
        for replicated in sets["replicatedJobs"]:
            yield f"{name_of(manifest)}.{replicated['name']}", replicated["template"]["spec"], True


def _sets(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for manifest in of_kind(manifests, "JobSet"):
        yield manifest, manifest["spec"]
    for manifest in of_kind(manifests, "TrainingRuntime"):
        yield manifest, manifest["spec"]["template"]["spec"]


@rule
def preemption_costs_no_retry(manifests: list[Manifest]) -> Iterator[str]:
    for where, spec, is_in_set in _job_specs(manifests):
        rules = spec.get("podFailurePolicy", {}).get("rules", [])
        expected = {
            "action": "FailJob" if is_in_set else "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
        if rules[:1] != [expected]:
            yield f"{where}: the first rule of podFailurePolicy is not {expected['action']} on DisruptionTarget"


@rule
def exit_codes_are_understood(manifests: list[Manifest]) -> Iterator[str]:
    for where, spec, is_in_set in _job_specs(manifests):
        actions: dict[int, str] = {}
        names = {container["name"] for container in spec["template"]["spec"]["containers"]}
        for each in spec.get("podFailurePolicy", {}).get("rules", []):
            codes = each.get("onExitCodes", {})
            if codes and codes.get("containerName") not in names:
                yield f"{where}: a rule is about container {codes.get('containerName')}, which is not there"
            for code in codes.get("values", []):
                actions.setdefault(code, each["action"])
        is_indexed = spec.get("completionMode") == "Indexed" and not is_in_set
        if actions.get(BAD_CONFIGURATION) != "FailJob":
            yield f"{where}: bad configuration ({BAD_CONFIGURATION}) does not fail the job"
        reads_data = "synth" not in words(spec["template"]["spec"]["containers"][0])
        expected = "FailIndex" if is_indexed else "FailJob"
        if reads_data and actions.get(BAD_DATA) != expected:
            yield f"{where}: bad data ({BAD_DATA}) is not answered by {expected}"
        if trains(Pod(where, {}, spec["template"])) and actions.get(PREEMPTED) != (
            "FailJob" if is_in_set else "Ignore"
        ):
            yield f"{where}: preempted ({PREEMPTED}) is not answered by {'FailJob' if is_in_set else 'Ignore'}"
        retries = spec.get("backoffLimitPerIndex" if is_indexed else "backoffLimit", 6)
        if actions.get(FAILED, "Count") != "Count" or not (is_in_set or 1 <= retries <= 6):
            yield f"{where}: what may pass ({FAILED}) is not tried again a few times"
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{where}: podFailurePolicy needs restartPolicy Never"
        if is_indexed and not {"backoffLimitPerIndex", "maxFailedIndexes"} <= spec.keys():
            yield f"{where}: an Indexed Job without backoffLimitPerIndex and maxFailedIndexes"


@rule
def rules_have_names(manifests: list[Manifest]) -> Iterator[str]:
    for manifest, spec in _sets(manifests):
        rules = spec.get("failurePolicy", {}).get("rules", [])
        names = [each.get("name", "") for each in rules]
        for name in names:
            if not RULE_NAME.fullmatch(name):
                yield f"{name_of(manifest)}: a failure rule's name is {name!r}"
        if len(set(names)) != len(names):
            yield f"{name_of(manifest)}: two failure rules have one name"


@rule
def a_set_decides_as_its_pods_do(manifests: list[Manifest]) -> Iterator[str]:
    """By the message that Kubernetes gives a job which a rule has failed."""
    message = "Container {} for pod facemill/pod failed with exit code {} matching FailJob rule at index 1"
    evicted = "Pod facemill/pod has condition DisruptionTarget matching FailJob rule at index 0"
    for manifest, spec in _sets(manifests):
        policy = spec.get("failurePolicy", {})
        cases = {
            message.format("facemill", BAD_CONFIGURATION): "FailJobSet",
            message.format("facemill", BAD_DATA): "FailJobSet",
            message.format("facemill", PREEMPTED): "RestartJobSetAndIgnoreMaxRestarts",
            evicted: "RestartJobSetAndIgnoreMaxRestarts",
        }
        for text, expected in cases.items():
            if (found := _decision(policy, "PodFailurePolicy", text)) != expected:
                yield f"{name_of(manifest)}: {found} after {text!r}, expected {expected}"
        crash = _decision(policy, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        if crash != "RestartJobSet" or not policy.get("maxRestarts"):
            yield f"{name_of(manifest)}: a crash is not tried again"


def _decision(policy: Manifest, reason: str, message: str) -> str:
    """As JobSet takes it: the first rule that matches, else a restart that counts."""
    for each in policy.get("rules", []):
        reasons, patterns = each.get("onJobFailureReasons", []), each.get("onJobFailureMessagePatterns", [])
        if (not reasons or reason in reasons) and (not patterns or any(re.search(p, message) for p in patterns)):
            return str(each["action"])
    return "RestartJobSet"


@rule
def numbers_agree(manifests: list[Manifest]) -> Iterator[str]:
    for where, spec, is_in_set in _job_specs(manifests):
        container = spec["template"]["spec"]["containers"][0]
        num_pods = _option(words(container), "--num-pods")
        if spec.get("completionMode") == "Indexed" and not is_in_set and num_pods != str(spec["completions"]):
            yield f"{where}: --num-pods {num_pods} of {spec['completions']} completions"
        workers = _option(words(container), "--workers")
        if workers is not None and int(workers) > quantity(container["resources"]["limits"]["cpu"]):
            yield f"{where}: --workers {workers} on {container['resources']['limits']['cpu']} cores"
        nodes = environment(container).get("PET_NNODES")
        if nodes is not None and not (int(nodes) == spec["completions"] == spec["parallelism"]):
            yield f"{where}: PET_NNODES {nodes} of {spec['completions']} completions"
    for manifest in of_kind(manifests, "JobSet"):
        replicated = manifest["spec"]["replicatedJobs"][0]
        first = f"{manifest['metadata']['name']}-{replicated['name']}-0-0.{manifest['metadata']['name']}"
        address = environment(replicated["template"]["spec"]["template"]["spec"]["containers"][0])["PET_MASTER_ADDR"]
        if address != first:
            yield f"{name_of(manifest)}: PET_MASTER_ADDR {address}, the first pod is {first}"


@rule
def ranks_have_a_gpu_each(manifests: list[Manifest]) -> Iterator[str]:
    ranks_elsewhere = {
        **{m["metadata"]["name"]: m["spec"]["elasticPolicy"]["nProcPerNode"] for m in of_kind(manifests, "PyTorchJob")},
        **{
            m["spec"]["runtimeRef"]["name"]: m["spec"]["trainer"]["numProcPerNode"]
            for m in of_kind(manifests, "TrainJob")
        },
    }
    for pod in pods(manifests):
        if not trains(pod):
            continue
        container = pod.containers[0]
        limits = container["resources"]["limits"]
        ranks = environment(container).get("PET_NPROC_PER_NODE") or ranks_elsewhere.get(pod.owner["metadata"]["name"])
        gpus = limits.get("nvidia.com/gpu")
        if ranks is None or (gpus is not None and int(gpus) != int(ranks)) or int(ranks) > quantity(limits["cpu"]):
            yield f"{pod.where}: {ranks} ranks on {gpus} GPUs and {limits['cpu']} cores"


@rule
def elastic_agents_share_a_store(manifests: list[Manifest]) -> Iterator[str]:
    services = {each["metadata"]["name"]: each for each in of_kind(manifests, "Service")}
    for manifest in of_kind(manifests, "PyTorchJob"):
        policy = manifest["spec"]["elasticPolicy"]
        service = services.get(policy.get("rdzvHost", ""))
        if service is None or policy.get("rdzvPort") not in [port["port"] for port in service["spec"]["ports"]]:
            yield f"{name_of(manifest)}: its rendezvous {policy.get('rdzvHost')}:{policy.get('rdzvPort')} is no service"
        if {"key": "is_host", "value": "false"} not in policy.get("rdzvConf", []):
            yield f"{name_of(manifest)}: without is_host=false the store lives in an agent, and ends with it"
        worker = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]
        if worker["restartPolicy"] != "OnFailure":
            yield f"{name_of(manifest)}: restartPolicy {worker['restartPolicy']} ends the job when a pod is preempted"
    for manifest in of_kind(manifests, "TrainingRuntime"):
        for pod in pods([manifest]):
            fixed = {"PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT", "PET_NPROC_PER_NODE"}
            if set_here := fixed & environment(pod.containers[0]).keys():
                yield f"{pod.where}: {', '.join(sorted(set_here))} are for the Trainer to set"


def _option(command: list[str], name: str) -> str | None:
    for number, word in enumerate(command):
        if word == name:
            return command[number + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None
