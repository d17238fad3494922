"""The chart, rendered by the real helm: rights, security, the key, the namespaces, and what its schema refuses."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api.harness import helm_program

from e2e.lib.pages import Shell, blocks
from semipd_agent.doctor.command import parser as doctor_parser
from semipd_operator.__main__ import parse

pytestmark = pytest.mark.api  # beside the programs that the api tier needs; no server runs here
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/semipd-operator"


@pytest.fixture(scope="module")
def helm() -> Path:
    return helm_program()


def template(helm: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [helm, "template", "spd", CHART, "-n", "sys", "--kube-version=1.36.2", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return [obj for obj in yaml.safe_load_all(answer.stdout) if obj]


def by_kind(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {obj["kind"]: obj for obj in objects}


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(obj for obj in objects if (obj["kind"], obj["metadata"]["name"]) == (kind, name))


def test_lint(helm: Path) -> None:
    answer = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_it_renders_without_a_cluster_and_without_its_version(helm: Path) -> None:
    """A helm that was built without the version of its own client calls that Kubernetes 1.20."""
    answer = subprocess.run([helm, "template", "spd", CHART], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_rights_are_the_least(helm: Path) -> None:
    roles = [
        obj
        for obj in template(helm)
        if obj["kind"] == "ClusterRole" and obj["metadata"]["name"] == "spd-semipd-operator"
    ]
    rules = roles[0]["rules"]
    resources = {resource for rule in rules for resource in rule["resources"]}
    assert not resources & {"secrets", "namespaces", "customresourcedefinitions", "serviceaccounts"}
    verbs = {resource: rule["verbs"] for rule in rules for resource in rule["resources"]}
    assert verbs["nodes"] == ["get", "list"] and verbs["events"] == ["create", "list"]
    assert all("*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]] for rule in rules)
    written = {r for rule in rules if set(rule["verbs"]) - {"get", "list", "watch"} for r in rule["resources"]}
    assert "semipdservices" not in written, "specification and metadata are the user's"
    assert "pods" not in written


def test_the_operator_pod_is_restricted(helm: Path) -> None:
    objects = by_kind(template(helm))
    deployment = objects["Deployment"]
    assert deployment["spec"]["replicas"] == 2
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] > 0
    assert objects["Pod"]["spec"]["securityContext"] == security, "the test hook runs the same image"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_openshift_names_no_user(helm: Path) -> None:
    users = {"runAsUser", "runAsGroup", "fsGroup"}
    for given in (("--api-versions=security.openshift.io/v1",), ("--set", "openshift=true")):
        deployment = by_kind(template(helm, *given))["Deployment"]
        pod = deployment["spec"]["template"]["spec"]
        assert not users & set(pod["securityContext"]) and pod["securityContext"]["runAsNonRoot"] is True
        assert "--engine-user=0" in pod["containers"][0]["args"], "nor do the engine pods"
    aside = template(helm, "--api-versions=security.openshift.io/v1", "--set", "openshift=false")
    assert users <= set(by_kind(aside)["Deployment"]["spec"]["template"]["spec"]["securityContext"])


def test_security_contexts_are_laid_over_ours(helm: Path) -> None:
    given = ("--set", "podSecurityContext.runAsUser=7", "--set", "securityContext.privileged=false")
    pod = by_kind(template(helm, *given))["Deployment"]["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["fsGroup"]) == (7, 10001)
    container = pod["containers"][0]["securityContext"]
    assert container["privileged"] is False and container["capabilities"] == {"drop": ["ALL"]}


def test_an_image_may_be_named_by_its_digest(helm: Path) -> None:
    digest = "sha256:" + "a" * 64
    container = by_kind(template(helm, "--set", f"image.digest={digest}", "--set", f"engine.image.digest={digest}"))[
        "Deployment"
    ]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"ghcr.io/semipd/operator@{digest}"
    assert f"--engine-image=ghcr.io/semipd/engine@{digest}" in container["args"]


def test_replicas_are_spread_and_drained_one_at_a_time(helm: Path) -> None:
    objects = by_kind(template(helm))
    labels = objects["Deployment"]["spec"]["selector"]["matchLabels"]
    [spread] = objects["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels and spread["whenUnsatisfiable"] == "ScheduleAnyway"
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    assert "PodDisruptionBudget" not in by_kind(template(helm, "--set", "replicas=1"))


def test_monitors_and_policies_are_made_where_asked_for(helm: Path, tmp_path: Path) -> None:
    assert not {"ServiceMonitor", "NetworkPolicy"} & set(by_kind(template(helm)))
    values = tmp_path / "values.yaml"
    values.write_text(
        "monitoring: {serviceMonitor: {enabled: true, labels: {release: prom}}, podMonitorLabels: {release: prom}}\n"
        "networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {}}]}\n"
    )
    objects = by_kind(template(helm, "-f", str(values)))
    monitor = objects["ServiceMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "30s"}]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= objects["Service"]["metadata"]["labels"].items()
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert "--pod-monitor-label=release=prom" in container["args"]
    rules = {rule["ports"][0]["port"]: rule.get("from") for rule in objects["NetworkPolicy"]["spec"]["ingress"]}
    assert rules == {"metrics": [{"namespaceSelector": {}}], "health": [{"podSelector": {}}], "metrics-api": None}
    assert set(rules) == {port["name"] for port in container["ports"]}


def test_the_arguments_are_ones_that_the_operator_takes(helm: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "watchNamespaces: [a, b]\n"
        "openshift: true\n"
        "monitoring: {podMonitorLabels: {release: prom}}\n"
        "engine: {image: {repository: r/e, tag: t, pullPolicy: Never}, imagePullSecrets: [s]}\n"
    )
    deployment = by_kind(template(helm, "-f", str(values)))["Deployment"]
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    settings, _ = parse([a.replace("/etc/semipd-operator/key", str(key)) for a in arguments])
    assert settings.engine_image == "r/e:t"
    assert (settings.engine_user, settings.pod_monitor_labels) == (None, (("release", "prom"),))
    assert settings.namespaces == ("a", "b")
    assert (settings.image_pull_policy, settings.image_pull_secrets) == ("Never", ("s",))
    served = settings.metrics_api
    assert served is not None and (served.namespace, served.service) == ("sys", METRICS_API)
    assert str(settings.lease) == "sys/spd-semipd-operator"
    assert (served.secret, served.port) == ("spd-semipd-operator-metrics-api", 8443)


def test_namespaces_get_roles_instead_of_a_cluster_role(helm: Path) -> None:
    bare = ("--set", "watchNamespaces={a,b}", "--set", "rbac.aggregate=false", "--set", "metricsApi.enabled=false")
    objects = template(helm, *bare)
    assert not [obj for obj in objects if obj["kind"].startswith("ClusterRole")]
    assert [o["metadata"]["namespace"] for o in objects if o["kind"] == "RoleBinding"] == ["a", "b", "sys"]
    roles = [obj for obj in objects if obj["kind"] == "Role" and obj["metadata"]["name"] == "spd-semipd-operator"]
    assert len(roles) == 2 and roles[0]["rules"] == roles[1]["rules"]


def test_the_key_is_random_or_given(helm: Path) -> None:
    first, second = (named(template(helm), "Secret", "spd-semipd-operator-key")["data"]["key"] for _ in range(2))
    assert first != second and len(base64.b64decode(first)) >= 32
    objects = template(helm, "--set", "key.existingSecret=mine")
    assert not [obj for obj in objects if obj["metadata"]["name"] == "spd-semipd-operator-key"]
    volumes = by_kind(objects)["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["secret"]["secretName"] == "mine"


def test_the_crd_is_kept_or_left_out(helm: Path) -> None:
    keep = {"helm.sh/resource-policy": "keep"}
    assert by_kind(template(helm))["CustomResourceDefinition"]["metadata"]["annotations"] == keep
    bare = by_kind(template(helm, "--set", "crds.keep=false"))["CustomResourceDefinition"]
    assert "annotations" not in bare["metadata"]
    assert "CustomResourceDefinition" not in by_kind(template(helm, "--set", "crds.enabled=false"))


def test_the_crd_survives_the_template(helm: Path) -> None:
    plain = yaml.safe_load((ROOT / "crds/semipdservices.semipd.io.yaml").read_text())
    assert by_kind(template(helm))["CustomResourceDefinition"]["spec"] == plain["spec"]


def test_the_test_hook_asks_the_health_endpoint(helm: Path) -> None:
    hook = by_kind(template(helm))["Pod"]
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "/healthz" in hook["spec"]["containers"][0]["command"][2]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("imge.tag=x", "imge"),
        ("engine.image.tga=x", "tga"),
        ("logLevel=loud", "logLevel"),
        ("rbac.secrets=true", "secrets"),
        ("doctor.node=2", "node"),
        ("doctor.nodes=0", "nodes"),
        ("metricsApi.certmanager=true", "certmanager"),
        ("metricsApi.port=443", "port"),
        ("metricsApi.port=8080", "metricsApi/port"),
        ("metricsApi.port=9090", "metricsApi/port"),
        ("image.digest=latest", "digest"),
        ("openshift=maybe", "openshift"),
        ("networkPolicy.enable=true", "enable"),
        ("monitoring.serviceMonitor.interval=often", "interval"),
    ],
)
def test_the_schema_refuses_typing_errors(helm: Path, setting: str, names: str) -> None:
    command = [helm, "template", "spd", CHART, "--kube-version=1.36.2", "--set", setting]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode != 0 and names in answer.stderr


def test_the_doctor_is_off_unless_asked_for(helm: Path) -> None:
    assert "Job" not in by_kind(template(helm))


def test_the_doctor_runs_once_on_each_of_the_chosen_nodes(helm: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "doctor: {enabled: true, nodes: 3, nodeSelector: {pool: gpu}, tolerations: [{key: nvidia.com/gpu}],\n"
        "  runtimeClassName: nvidia}\n"
        "engine: {image: {repository: r/e, tag: t, pullPolicy: Never}, imagePullSecrets: [s]}\n"
    )
    job = by_kind(template(helm, "-f", str(values)))["Job"]
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"]) == (3, 3, 0)
    pod = spec["template"]["spec"]
    rule = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    labels = spec["template"]["metadata"]["labels"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
    operator = by_kind(template(helm))["Deployment"]["spec"]["selector"]["matchLabels"]
    assert not operator.items() <= labels.items(), "the operator's selector does not find it"
    assert (pod["nodeSelector"], pod["runtimeClassName"]) == ({"pool": "gpu"}, "nvidia")
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu"}] and pod["imagePullSecrets"] == [{"name": "s"}]
    container = pod["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == ("r/e:t", "Never")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_the_doctor_fits_the_restricted_profile_and_its_flags_are_ones_it_takes(helm: Path) -> None:
    job = by_kind(template(helm, "--set", "doctor.enabled=true"))["Job"]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["command"] == ["semipd-agent", "doctor"]
    options = doctor_parser().parse_args(container["args"])
    assert (options.device, options.trial) == ("cuda", True)
    directories = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/run/spd", "/dev/shm", "/tmp"} <= directories, "the root file system is read-only"


def test_the_notes_say_what_has_not_run(helm: Path) -> None:
    notes = (CHART / "templates/NOTES.txt").read_text()
    assert "the GPU path has not been executed" in notes


def test_extra_objects_are_templates(helm: Path, tmp_path: Path) -> None:
    values = tmp_path / "v.yaml"
    values.write_text('extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: "{{ .Release.Name }}-x"}}]\n')
    assert by_kind(template(helm, "-f", str(values)))["ConfigMap"]["metadata"]["name"] == "spd-x"


METRICS_API = "spd-semipd-operator-metrics-api"


def test_the_lease_is_the_only_one_that_the_operator_may_write(helm: Path) -> None:
    objects = template(helm)
    assert "spec" not in named(objects, "Lease", "spd-semipd-operator"), "an upgrade must not take it from the leader"
    [rule] = named(objects, "Role", "spd-semipd-operator-leader")["rules"]
    assert (rule["resources"], rule["resourceNames"], rule["verbs"]) == (
        ["leases"],
        ["spd-semipd-operator"],
        ["get", "patch"],
    )


def test_the_metrics_api_has_the_rights_that_it_needs_and_no_more(helm: Path) -> None:
    objects = template(helm)
    assert "APIService" not in by_kind(objects), "the leader registers, where nobody else has"
    assert "selector" not in named(objects, "Service", METRICS_API)["spec"], "the leader answers"
    rules = named(objects, "ClusterRole", METRICS_API)["rules"]
    assert [(rule["resources"], rule.get("resourceNames"), rule["verbs"]) for rule in rules] == [
        (["subjectaccessreviews"], None, ["create"]),
        (["apiservices"], ["v1beta1.external.metrics.k8s.io"], ["get", "create", "patch", "delete"]),
        (["clusterroles"], [METRICS_API], ["get"]),
    ]
    rules = named(objects, "Role", METRICS_API)["rules"]
    assert [(rule["resources"], rule.get("resourceNames"), rule["verbs"]) for rule in rules] == [
        (["endpointslices"], [f"{METRICS_API}-ipv4", f"{METRICS_API}-ipv6"], ["get", "create", "patch", "delete"]),
        (["endpoints"], [METRICS_API], ["get", "create", "patch", "delete"]),
        (["endpoints/restricted", "endpointslices/restricted"], None, ["create"]),
        (["secrets"], [METRICS_API], ["get", "patch"]),
    ]
    assert "data" not in named(objects, "Secret", METRICS_API), "an upgrade must not empty it"
    bindings = [obj for obj in objects if obj["kind"] == "RoleBinding" and obj["metadata"]["name"] == METRICS_API]
    assert {obj["metadata"]["namespace"]: obj["roleRef"]["name"] for obj in bindings} == {
        "sys": METRICS_API,
        "kube-system": "extension-apiserver-authentication-reader",
    }


def test_the_metrics_api_can_be_left_out(helm: Path) -> None:
    objects = template(helm, "--set", "metricsApi.enabled=false")
    assert not [obj for obj in objects if "metrics-api" in obj["metadata"]["name"] or obj["kind"] == "APIService"]
    ports = [port["name"] for port in by_kind(objects)["Service"]["spec"]["ports"]]
    arguments = by_kind(objects)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert ports == ["health", "metrics"] and not [each for each in arguments if "metrics-api" in each]


@pytest.mark.parametrize(("issuer", "name"), [("", METRICS_API), ("corporate", "corporate")])
def test_cert_manager_takes_the_place_of_our_own_certificate(
    helm: Path, tmp_path: Path, issuer: str, name: str
) -> None:
    given = ("--set", f"metricsApi.certManager.issuerRef.name={issuer}") if issuer else ()
    objects = template(helm, "--set", "metricsApi.certManager.enabled=true", *given)
    certificate = named(objects, "Certificate", METRICS_API)["spec"]
    assert certificate["issuerRef"]["name"] == name
    assert bool([obj for obj in objects if obj["kind"] == "Issuer"]) is not bool(issuer)
    assert f"{METRICS_API}.sys.svc" in certificate["dnsNames"]
    roles = [obj for obj in objects if obj["kind"] == "Role"]
    assert "secrets" not in {each for role in roles for rule in role["rules"] for each in rule["resources"]}
    pod = by_kind(objects)["Deployment"]["spec"]["template"]["spec"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "metrics-api"]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    settings, _ = parse([a.replace("/etc/semipd-operator/key", str(key)) for a in pod["containers"][0]["args"]])
    assert settings.metrics_api is not None and str(settings.metrics_api.tls_dir) == "/etc/semipd-operator-tls"


def test_each_value_of_the_quick_start_shows_in_what_is_installed(helm: Path, tmp_path: Path) -> None:
    """So that the blocks behind `helm install` fail: the pods are elsewhere, or of an image that nobody has."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    [install] = [block for block in blocks(page, "On a cluster") if block.commands.startswith("helm install")]

    def rendered(commands: str) -> list[str]:
        line = commands.replace("helm install", f"{helm} template --kube-version=1.36.2")
        line = line.replace('"oci://$REGISTRY/charts/semipd-operator" --version 0.2.0-dev', str(CHART))
        status, printed = shell.attempt(line, 30)
        return re.findall(r"(?:image|namespace)[:=].*", printed) if status == 0 else []

    with Shell(tmp_path, {"REGISTRY": "registry.test/semipd"}) as shell:
        right = rendered(install.commands)
        assert any("registry.test/semipd/operator:dev" in line for line in right)
        assert any("registry.test/semipd/engine:dev" in line for line in right)
        changes = [mutant for mutant in install.mutants() if mutant.flag in ("--namespace", "--set")]
        assert len(changes) == 5 * 3
        assert not [mutant for mutant in changes if rendered(mutant.commands) == right]
