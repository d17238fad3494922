"""The chart under unusual values: names that look like numbers, long ones, nulls, and what its schema refuses."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api.harness import helm_program

pytestmark = pytest.mark.api  # beside the programs that the api tier needs; no server runs here
CHART = Path(__file__).resolve().parents[2] / "charts/semipd-operator"
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.fixture(scope="module")
def helm() -> Path:
    return helm_program()


def run(helm: Path, *arguments: str, release: str = "spd", namespace: str = "sys") -> subprocess.CompletedProcess[str]:
    command = [helm, "template", release, CHART, "-n", namespace, "--kube-version=1.36.2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(helm: Path, *arguments: str, release: str = "spd", namespace: str = "sys") -> str:
    answer = run(helm, *arguments, release=release, namespace=namespace)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def objects(text: str) -> list[dict[str, Any]]:
    return [obj for obj in yaml.safe_load_all(text) if obj]


def nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    yield node
    for below in node.value if isinstance(node, yaml.SequenceNode) else ():
        yield from nodes(below)
    for pair in node.value if isinstance(node, yaml.MappingNode) else ():
        for below in pair:
            yield from nodes(below)


def everything(word: str) -> dict[str, Any]:
    """Values of which each string that may be so is `word`, and everything is made."""
    return {
        "image": {"tag": word, "repository": word},
        "engine": {"image": {"tag": word, "repository": word, "pullPolicy": "Always"}, "imagePullSecrets": [word]},
        "imagePullSecrets": [{"name": word}],
        "watchNamespaces": [word],
        "key": {"existingSecret": word},
        "metricsApi": {"certManager": {"enabled": True, "issuerRef": {"kind": "Issuer", "name": word}}},
        "serviceAccount": {"name": word, "annotations": {word: word}},
        "extraArgs": [word],
        "extraEnv": [{"name": word, "value": word}],
        "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {"matchLabels": {word: word}}}]},
        "monitoring": {"serviceMonitor": {"enabled": True, "labels": {word: word}}, "podMonitorLabels": {word: word}},
        "podAnnotations": {word: word},
        "podLabels": {word: word},
        "nodeSelector": {word: word},
        "tolerations": [{"key": word, "value": word}],
        "priorityClassName": word,
        "doctor": {
            "enabled": True,
            "args": [word],
            "nodeSelector": {word: word},
            "tolerations": [{"key": word}],
            "runtimeClassName": word,
        },
        "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": word}, "data": {word: word}}],
        "nameOverride": word,
    }


@pytest.mark.parametrize("word", ["123", "1e5", "0x10", "0755", "true", "no", "null", "1000000000000000000000"])
def test_a_name_that_looks_like_a_number_stays_a_string(helm: Path, tmp_path: Path, word: str) -> None:
    """Whoever reads the YAML: a plain scalar is a number or a boolean to one of them."""
    text = rendered_with(helm, tmp_path, word)
    own = {line.strip() for line in plain(rendered_with(helm, tmp_path, "a-word"), word)}
    assert text.count(f'"{word}"') > 60
    assert [line for line in plain(text, word) if line.strip() not in own] == []


def rendered_with(helm: Path, folder: Path, word: str) -> str:
    values = folder / "values.json"
    values.write_text(json.dumps(everything(word)))
    return rendered(helm, "-f", str(values), release=word, namespace=word)


def plain(text: str, word: str) -> list[str]:
    """The lines in which it stands without quotes."""
    found = [node for document in yaml.compose_all(text) if document for node in nodes(document)]
    scalars = [one for one in found if isinstance(one, yaml.ScalarNode) and one.value == word and one.style is None]
    return [text.splitlines()[node.start_mark.line] for node in scalars]


def test_no_key_is_written_twice(helm: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    given = everything("x")
    given["podLabels"] = given["monitoring"]["serviceMonitor"]["labels"] = {"app.kubernetes.io/part-of": "mine"}
    values.write_text(json.dumps(given))
    for document in yaml.compose_all(rendered(helm, "-f", str(values))):
        for node in nodes(document) if document else ():
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value]
                assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"


LONG = "abcdefghi-" * 8


@pytest.mark.parametrize(
    ("release", "settings"),
    [
        (LONG[:53].rstrip("-"), ()),
        ("spd", ("--set", f"nameOverride={LONG}z")),
        ("spd", ("--set", f"fullnameOverride={LONG}z")),
        ("a.b", ()),
        ("spd.2", ("--set", "nameOverride=spd")),
    ],
)
def test_every_name_and_label_fits(helm: Path, release: str, settings: tuple[str, ...]) -> None:
    more = ("--set", "doctor.enabled=true", "--set", "monitoring.serviceMonitor.enabled=true")
    found = objects(rendered(helm, *settings, *more, release=release))
    for obj in found:
        if obj["kind"] in ("Service", "Pod", "Job", "Deployment"):
            assert DNS_LABEL.fullmatch(obj["metadata"]["name"]), obj["metadata"]["name"]
        template = obj["spec"]["template"]["metadata"] if obj["kind"] in ("Job", "Deployment") else {}
        for label in [*obj["metadata"].get("labels", {}).values(), *template.get("labels", {}).values()]:
            assert LABEL.fullmatch(label), label


@pytest.mark.parametrize(
    "name",
    [
        "replicas",
        "image",
        "engine",
        "engine.image",
        "crds",
        "crds.keep",
        "key",
        "rbac",
        "rbac.podMonitors",
        "metricsApi",
        "metricsApi.port",
        "metricsApi.certManager",
        "serviceAccount",
        "logLevel",
        "openshift",
        "podDisruptionBudget",
        "networkPolicy",
        "monitoring",
        "monitoring.serviceMonitor",
        "doctor",
        "doctor.nodes",
    ],
)
def test_a_null_where_a_value_must_be_is_refused_by_name(helm: Path, name: str) -> None:
    answer = run(helm, "--set", f"{name}=null")
    assert answer.returncode != 0 and "don't meet the specifications of the schema" in answer.stderr
    assert f"missing property '{name.rpartition('.')[2]}'" in answer.stderr


@pytest.mark.parametrize(
    "name",
    [
        "resources",
        "affinity",
        "podLabels",
        "podAnnotations",
        "nodeSelector",
        "tolerations",
        "podSecurityContext",
        "securityContext",
        "watchNamespaces",
        "extraEnv",
        "extraArgs",
        "extraObjects",
        "imagePullSecrets",
        "image.tag",
        "priorityClassName",
        "topologySpreadConstraints",
        "nameOverride",
        "key.existingSecret",
        "serviceAccount.name",
        "monitoring.podMonitorLabels",
        "metricsApi.certManager.issuerRef",
        "engine.imagePullSecrets",
    ],
)
def test_any_other_null_is_as_nothing_given(helm: Path, name: str) -> None:
    def pods(*settings: str) -> Any:
        [pod] = [obj["spec"] for obj in objects(rendered(helm, *settings)) if obj["kind"] == "Deployment"]
        return pod

    expected = pods()
    if name == "resources":
        expected["template"]["spec"]["containers"][0]["resources"] = None
    assert pods("--set", f"{name}=null") == expected


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("fullnameOverride=SemiPD", "/fullnameOverride"),
        ("fullnameOverride=semi.pd", "/fullnameOverride"),
        ("fullnameOverride=1spd", "/fullnameOverride"),
        ("nameOverride=semi_pd", "/nameOverride"),
        ("watchNamespaces={team-a,team-a}", "/watchNamespaces"),
        ("watchNamespaces={team_a}", "/watchNamespaces/0"),
        ("engine.imagePullSecrets={a b}", "/engine/imagePullSecrets/0"),
        ("imagePullSecrets[0].name=A", "/imagePullSecrets/0/name"),
        ("serviceAccount.name=Mine", "/serviceAccount/name"),
        ("key.existingSecret=a_b", "/key/existingSecret"),
        ("priorityClassName=High", "/priorityClassName"),
        ("image.repository=ghcr.io/semipd/operator:v1", "/image/repository"),
        ("image.tag=a b", "/image/tag"),
        ("resources.limits.memory=12Gx", "/resources/limits/memory"),
        ("podLabels.a=b=c", "/podLabels/a"),
        ("monitoring.podMonitorLabels.release=a=b", "/monitoring/podMonitorLabels/release"),
        ("nodeSelector.pool=a b", "/nodeSelector/pool"),
        ("extraObjects={x}", "/extraObjects/0"),
        (r"podLabels.app\.kubernetes\.io/name=mine", "podLabels: app.kubernetes.io/name is the chart's own"),
        ("extraEnv[0].name=POD_NAME", "extraEnv: POD_NAME is the chart's own"),
    ],
)
def test_what_the_api_server_would_refuse_half_way_is_refused_first(helm: Path, setting: str, names: str) -> None:
    answer = run(helm, "--set", setting)
    assert answer.returncode != 0 and names in answer.stderr, answer.stderr


@pytest.mark.parametrize(
    "setting",
    [
        "image.repository=localhost:5000/semipd/operator",
        "image.repository=ghcr.io/semipd/operator",
        "image.repository=localhost/semipd/a_b",
        "resources.limits.cpu=0.5",
        "resources.limits.cpu=2",
        "resources.requests.memory=1e9",
        r"podLabels.example\.com/team=a.b_c",
        "serviceAccount.name=a.b",
        "image.tag=1.10",
        "replicas=0",
    ],
)
def test_what_is_right_is_taken(helm: Path, setting: str) -> None:
    rendered(helm, "--set", setting)
