"""Rules of our own for rendered manifests: each takes all objects of an overlay and gives one line per complaint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tests.k8s.manifests import (
    REPOSITORY,
    Manifest,
    Pod,
    environment,
    name_of,
    of_kind,
    pods,
    quantity,
    words,
)

Rule = Callable[[list[Manifest]], Iterator[str]]
RULES: list[Rule] = []

RULE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")  # of a JobSet's failure rule, as its webhook wants it
SAVE_ANNOTATION = "facemill.io/save-seconds"
PREEMPTED, FAILED, BAD_CONFIGURATION, BAD_DATA = 75, 1, 2, 3


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def trains(pod: Pod) -> bool:
    return any("torchrun" in words(container) for container in pod.containers)


def is_of_ray(pod: Pod) -> bool:
    return pod.owner["kind"] == "RayJob"


@rule
def finished_jobs_go(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "Job", "JobSet", "RayJob"):
        if "ttlSecondsAfterFinished" not in manifest["spec"]:
            yield f"{name_of(manifest)}: no ttlSecondsAfterFinished"
    for manifest in of_kind(manifests, "PyTorchJob"):
        if "ttlSecondsAfterFinished" not in manifest["spec"].get("runPolicy", {}):
            yield f"{name_of(manifest)}: no runPolicy.ttlSecondsAfterFinished"
    for manifest in of_kind(manifests, "TrainingRuntime"):
        if "ttlSecondsAfterFinished" not in manifest["spec"]["template"]["spec"]:
            yield f"{name_of(manifest)}: no ttlSecondsAfterFinished in its template"


@rule
def a_ttl_needs_shutdown(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "RayJob"):
        if manifest["spec"].get("ttlSecondsAfterFinished") and not manifest["spec"].get("shutdownAfterJobFinishes"):
            yield f"{name_of(manifest)}: ttlSecondsAfterFinished without shutdownAfterJobFinishes"


@rule
def images_are_pinned(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        for container in pod.containers:
            image = container["image"]
            _, _, tag = image.rpartition("/")[2].partition(":")
            if "@sha256:" not in image and tag in ("", "latest"):
                yield f"{pod.where}: image {image} has no tag that stays"


@rule
def resources_are_bounded(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        for container in pod.containers:
            requests = container.get("resources", {}).get("requests", {})
            limits = container.get("resources", {}).get("limits", {})
            for resource in ("cpu", "memory", "ephemeral-storage"):
                if resource not in requests:
                    yield f"{pod.where}: requests no {resource}"
                if resource not in limits:
                    yield f"{pod.where}: no limit of {resource}"
            for resource in requests:
                has_both = resource in limits
                must_match = resource == "memory" or "/" in resource  # devices, by their vendor's name
                if has_both and must_match and quantity(requests[resource]) != quantity(limits[resource]):
                    yield f"{pod.where}: {resource} requested is not its limit"


@rule
def pods_are_not_root(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True:
            yield f"{pod.where}: runAsNonRoot is not true"
        if not isinstance(context.get("runAsUser"), int) or context["runAsUser"] == 0:
            yield f"{pod.where}: runAsUser is not a number above 0"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.where}: seccompProfile is not RuntimeDefault"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.where}: {key}"


@rule
def containers_are_locked_down(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        for container in pod.containers:
            context = container.get("securityContext", {})
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{pod.where}: the root file system can be written to"
            if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
                yield f"{pod.where}: privileges can grow"
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{pod.where}: capabilities are not dropped"
            if "/tmp" not in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
                yield f"{pod.where}: nothing to write to at /tmp"


@rule
def pods_hold_no_token(manifests: list[Manifest]) -> Iterator[str]:
    accounts = {account["metadata"]["name"]: account for account in of_kind(manifests, "ServiceAccount")}
    for pod in pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: a service-account token is mounted"
        if pod.spec.get("serviceAccountName") not in accounts:
            yield f"{pod.where}: service account {pod.spec.get('serviceAccountName')} is not among the objects"


@rule
def scratch_space_is_bounded(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        scratch = {volume["name"]: volume["emptyDir"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume}
        for name, volume in scratch.items():
            if "sizeLimit" not in volume:
                yield f"{pod.where}: emptyDir {name} has no sizeLimit"
        for container in pod.containers:
            limit = container.get("resources", {}).get("limits", {}).get("memory", "0")
            mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
            needs_memory = trains(pod) or container["name"] in ("ray-head", "ray-worker")
            shared = scratch.get(mounts.get("/dev/shm", ""))
            if shared is None and needs_memory:
                yield f"{pod.where}: /dev/shm is not a memory emptyDir"
            elif shared is not None:
                if shared.get("medium") != "Memory":
                    yield f"{pod.where}: /dev/shm is not a memory emptyDir"
                if quantity(shared.get("sizeLimit", "0")) >= quantity(limit):
                    yield f"{pod.where}: /dev/shm may fill all of the memory limit"


@rule
def volumes_are_there(manifests: list[Manifest]) -> Iterator[str]:
    claims = {claim["metadata"]["name"] for claim in of_kind(manifests, "PersistentVolumeClaim")}
    maps = {each["metadata"]["name"] for each in of_kind(manifests, "ConfigMap")}
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for volume in volumes.values():
            claim, config = volume.get("persistentVolumeClaim", {}), volume.get("configMap", {})
            if claim and claim["claimName"] not in claims:
                yield f"{pod.where}: claim {claim['claimName']} is not among the objects"
            if config and config["name"] not in maps:
                yield f"{pod.where}: ConfigMap {config['name']} is not among the objects"
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where}: mounts {mount['name']}, which is no volume"


@rule
def priorities_are_there(manifests: list[Manifest]) -> Iterator[str]:
    classes = {each["metadata"]["name"] for each in of_kind(manifests, "PriorityClass")}
    for pod in pods(manifests):
        if pod.spec.get("priorityClassName") not in classes:
            yield f"{pod.where}: priority {pod.spec.get('priorityClassName')} is not among the objects"


@rule
def there_is_time_to_save(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        if not trains(pod):
            if "terminationGracePeriodSeconds" not in pod.spec:
                yield f"{pod.where}: no terminationGracePeriodSeconds"
            continue
        variables = environment(pod.containers[0])
        grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)  # Kubernetes' default
        shutdown_s = int(variables.get("PET_SHUTDOWN_TIMEOUT") or 30)  # torchrun's default
        save_s = int(pod.template["metadata"].get("annotations", {}).get(SAVE_ANNOTATION, 10**9))
        if not grace_s > shutdown_s > save_s:
            yield f"{pod.where}: grace period {grace_s} s > shutdown {shutdown_s} s > save {save_s} s does not hold"


@rule
def training_is_supervised(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        for container in pod.containers:
            if "torchrun" in words(container) and words(container)[:4] != ["python", "-m", "pipeline.supervise", "--"]:
                yield f"{pod.where}: torchrun without pipeline.supervise says 1 for every failure"


@rule
def pods_are_known_by_labels(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if "app.kubernetes.io/component" not in manifest["metadata"].get("labels", {}):
            yield f"{name_of(manifest)}: no label app.kubernetes.io/component, by which the steps are applied"
    for pod in pods(manifests):
        if pod.labels.get("app.kubernetes.io/part-of") != "facemill" or not pod.labels.get(
            "app.kubernetes.io/component"
        ):
            yield f"{pod.where}: lacks the labels by which policies select it"


@rule
def objects_have_a_namespace(manifests: list[Manifest]) -> Iterator[str]:
    of_the_cluster = ("Namespace", "PriorityClass", "Topology", "ResourceFlavor", "ClusterQueue")
    for manifest in manifests:
        namespace = manifest["metadata"].get("namespace")
        expected = None if manifest["kind"] in of_the_cluster else "facemill"
        if namespace != expected:
            yield f"{name_of(manifest)}: namespace {namespace}, expected {expected}"


@rule
def services_reach_pods(manifests: list[Manifest]) -> Iterator[str]:
    for service in of_kind(manifests, "Service"):
        selector = dict(service["spec"]["selector"])
        selector.pop("ray.io/node-type", None)  # set by KubeRay
        reached = [pod for pod in pods(manifests) if selector.items() <= pod.labels.items()]
        names = {port["name"] for pod in reached for each in pod.containers for port in each.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in names:
                yield f"{name_of(service)}: no pod has the port {port['targetPort']}"


@rule
def ray_is_fenced_in(manifests: list[Manifest]) -> Iterator[str]:
    policies = of_kind(manifests, "NetworkPolicy")
    for pod in pods(manifests):
        own = [policy for policy in policies if _selects(policy["spec"]["podSelector"], pod.labels)]
        if not own:
            yield f"{pod.where}: no NetworkPolicy selects it"
        if not is_of_ray(pod):
            continue
        for policy in own:
            for source in (source for entry in policy["spec"]["ingress"] for source in entry.get("from", [{}])):
                labels = source.get("podSelector", {}).get("matchLabels", {})
                is_own = labels.get("app.kubernetes.io/component") == "tuning" and "namespaceSelector" not in source
                is_operator = labels.get("app.kubernetes.io/name") == "kuberay-operator"
                if not (is_own or is_operator):
                    yield f"{pod.where}: {name_of(policy)} lets others than Ray's pods and its operator in"
    for job in of_kind(manifests, "RayJob"):
        cluster = job["spec"]["rayClusterSpec"]
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{name_of(job)}: Ray asks for no token"
        if f"ray=={cluster.get('rayVersion')}" not in (REPOSITORY / "constraints.txt").read_text().splitlines():
            yield f"{name_of(job)}: rayVersion {cluster.get('rayVersion')} is not that of constraints.txt"


@rule
def a_queue_covers_what_is_asked_for(manifests: list[Manifest]) -> Iterator[str]:
    """A resource that a queue does not list is never there, and a job larger than the quota waits for ever."""
    queues = {each["metadata"]["name"] for each in of_kind(manifests, "LocalQueue")}
    for queue in of_kind(manifests, "ClusterQueue"):
        (group,) = queue["spec"]["resourceGroups"]
        quota = {each["name"]: quantity(each["nominalQuota"]) for each in group["flavors"][0]["resources"]}
        if set(group["coveredResources"]) != quota.keys():
            yield f"{name_of(queue)}: covers {group['coveredResources']} and has quotas of {sorted(quota)}"
        for manifest in of_kind(manifests, "Job", "JobSet", "RayJob"):
            if manifest["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") not in queues:
                yield f"{name_of(manifest)}: not in the queue"
            if manifest["spec"].get("suspend") is not True:
                yield f"{name_of(manifest)}: starts without waiting for its turn"
            for resource, amount in _asked_for(manifest).items():
                if amount > (there := quota.get(resource, 0)):
                    yield f"{name_of(manifest)}: asks for {amount:g} {resource}, the queue has {there:g}"


def _asked_for(manifest: Manifest) -> dict[str, float]:
    """By all pods of a job together."""
    amounts: dict[str, float] = {}
    for pod in pods([manifest]):
        parallel = manifest["spec"].get("parallelism", 1)
        if manifest["kind"] == "JobSet":
            parallel = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"]
        elif ".workerGroupSpecs[0]" in pod.where:
            parallel = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
        for container in pod.containers:
            for resource, amount in container["resources"]["requests"].items():
                amounts[resource] = amounts.get(resource, 0) + parallel * quantity(amount)
    return amounts


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "NotIn", expression
        if labels.get(expression["key"]) in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
