"""Both ways between the release before and this tree, under traffic: what a platform team does first with an operator.

The agents of this tree speak to the operator of the release, and the other way round. The CRD of this tree gets a field
that neither operator knows, and its agents say words and a field that neither knows: a later version's. No request is
lost, no pod is rolled (by the API server's audit log), and whoever changes a service sees it in the status within
seconds, whichever operator leads.
"""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Ask, SteadyLoad
from e2e.lib.fixtures import create_space
from e2e.lib.helm import CHART, DEV_IMAGES, RELEASE, SYSTEM, Operator
from e2e.lib.kube import ROOT, Object
from e2e.lib.process import Heartbeat
from e2e.lib.release import NoRelease, Release, previous
from e2e.lib.service import Service, manual, shares, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

SILENT_BEATS = 15
"""So long may a status be silent, in turns of a plain loop that sleeps for a second and writes a ConfigMap: 15 s, and
more by as much as that loop is late on this machine."""
HEART = (
    'while sleep 1 && kubectl --namespace "$0" annotate configmap heart --overwrite at="$RANDOM" >/dev/null; do'
    " echo; done"
)
ASKS = [
    Ask(prompt_ids(40, seed=seed, vocabulary=range(1_000, 3_000)), 40, stream=seed % 2 == 0) for seed in range(1, 5)
]
CRD = "semipdservices.semipd.io"


@pytest.fixture(scope="module")
def release() -> Release:
    try:
        return previous()
    except NoRelease as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def bare_space(cluster: Cluster, operator: Operator) -> Iterator[str]:
    """A namespace with models on a cluster that never saw the project; afterwards the operator of this tree is back."""
    name = f"spd-{uuid4().hex[:8]}"
    operator.uninstall()
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=120s")
    create_space(cluster, name)
    yield name
    cluster.kubectl("--namespace", name, "delete", "spd", "--all", "--ignore-not-found", "--timeout=120s")
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", f"{name}-models", "--wait=false")
    operator.uninstall()
    operator.install()


LATER_FIELD = "laterField"
LATER_CHART = f"""                  {LATER_FIELD}:
                    type: integer
                    description: Of a later version.
"""


def later_chart(tmp: Path) -> Path:
    """This tree's chart, whose CRD has a field more below spec.partition."""
    chart = tmp / "chart"
    shutil.copytree(CHART, chart)
    crd = chart / "templates" / "crds" / "semipdservices.semipd.io.yaml"
    text, anchor = crd.read_text(), "                  minPrefillPercent:\n"
    assert text.count(anchor) == 1
    crd.write_text(text.replace(anchor, LATER_CHART + anchor))
    return chart


LATER_SPLIT = (44, 77)
LATER_AGENT = """
import json, sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

class Later(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "semipd_agent.contract":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            plain = module.StatusReport.model_dump_json
            def later(self, **options):
                report = json.loads(plain(self, **options))
                report["laterField"] = report["partition"]["laterField"] = {"a": [1]}
                if report["partition"]["requested"]["prefillPercent"] == 44:
                    report["partition"] |= {"state": "Cooling", "reason": "CoreTooHot", "message": "it has 41 C"}
                return json.dumps(report)
            module.StatusReport.model_dump_json = later
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Later())
"""
"""As ``sitecustomize``: an agent of a later version, with fields at two levels, and at one split words of its own."""


def later_agents(cluster: Cluster, space: str, spec: Object) -> Object:
    """`spec` with such agents."""
    meta = {"name": "later", "namespace": space}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"sitecustomize.py": LATER_AGENT}}
    )
    mount = {"name": "later", "mountPath": "/later"}
    engine = {"name": "engine", "env": [{"name": "PYTHONPATH", "value": "/later"}], "volumeMounts": [mount]}
    volume = {"name": "later", "configMap": {"name": "later"}}
    return {**spec, "podTemplate": {"spec": {"containers": [engine], "volumes": [volume]}}}


def says_later_words(service: Service) -> None:
    """What no version knows is shown as it is, and passes."""
    service.patch({"partition": manual(*LATER_SPLIT)})
    found = service.wait_condition("PartitionApplied", "False", "CoreTooHot")
    assert "it has 41 C" in found["message"] and service.row()["REASON"] == "CoreTooHot"
    assert service.status()["partition"]["pods"][0]["state"] == "Cooling"
    print(service.row(), found["message"], sep="\n")


@pytest.fixture
def heart(cluster: Cluster, bare_space: str) -> Iterator[Heartbeat]:
    """What this machine and this API server have time for; it knows no operator."""
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "heart", "namespace": bare_space}})
    with Heartbeat(cluster.start("bash", "-c", HEART, bare_space)) as beating:
        yield beating


class Pulse(AbstractContextManager["Pulse"]):
    """Moves a service's split to and fro and notes how many beats the status takes to show each move."""

    def __init__(self, service: Service, heart: Heartbeat) -> None:
        self._service, self._heart, self._stop = service, heart, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse")
        self.took: list[int] = []
        self.failed = ""

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        try:
            for split in itertools.cycle([(80, 40), (50, 50)]):
                if self._stop.is_set():
                    return
                self.took.append(self._move(*split))
                self._stop.wait(0.5)
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"

    def _move(self, prefill: int, decode: int) -> int:
        self._service.patch({"partition": manual(prefill, decode)})
        return self._heart.until(lambda: applied(self._service, prefill, decode))


def applied(service: Service, prefill: int, decode: int) -> bool:
    """Does the status show this split as the one in force?"""
    return bool((service.status().get("partition") or {}).get("applied") == shares(prefill, decode))


def show(service: Service, prefill: int, decode: int) -> None:
    """Patches the split and waits for a status that shows it as applied."""
    service.patch({"partition": manual(prefill, decode)})
    wait_until(lambda: applied(service, prefill, decode), describe=lambda: service.status().get("partition"))


def templates(service: Service) -> Object:
    """What a roll would change: the pod template, its revision, the ReplicaSets made of it."""
    at = ("--namespace", service.namespace, "get")
    deployment = service.cluster.get("deployment", service.name, service.namespace)
    sets = service.cluster.kubectl(*at, "replicasets", "-l", f"semipd.io/service={service.name}", "-o", "name")
    return {
        "template": deployment["spec"]["template"],
        "revision": deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "sets": sorted(sets.split()),
    }


def paths(schema: Object, above: str = "") -> set[str]:
    """Every field of a schema."""
    found = {f"{above}.{name}": field for name, field in schema.get("properties", {}).items()}
    below = [paths(field, path) for path, field in found.items()]
    items = [paths(schema["items"], f"{above}[]")] if isinstance(schema.get("items"), dict) else []
    return set(found).union(*below, *items)


def installed_crd(cluster: Cluster) -> set[str]:
    return _fields(json.loads(cluster.kubectl("get", "crd", CRD, "-o", "json")))


def written_crd(file: Path) -> set[str]:
    return _fields(yaml.safe_load(file.read_text()))


def _fields(crd: Object) -> set[str]:
    return paths(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def test_up_down_away_and_back(
    cluster: Cluster,
    operator: Operator,
    bare_space: str,
    heart: Heartbeat,
    release: Release,
    model_paths: dict[str, Path],
    tmp_path: Path,
) -> None:
    cluster.load(*release.images.values())
    before = Operator(cluster, release.images, release.chart)
    after = Operator(cluster, DEV_IMAGES, later_chart(tmp_path))
    before.install()
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=120s")
    assert installed_crd(cluster) == written_crd(release.crd)
    tiny = spec(model_paths["tiny-llama"].name, partition=manual(50, 50))
    kept = Service(cluster, bare_space, "kept").apply(tiny).wait_ready()
    lives, rolled = kept.lives(), templates(kept)
    with SteadyLoad(cluster, kept.url(), ASKS, clients=2) as load:
        with Pulse(kept, heart) as pulse:
            wait_until(lambda: len(pulse.took) >= 2, describe=lambda: pulse.failed)
            after.upgrade()
            crd = ROOT / "crds" / release.crd.name
            field = f".spec.partition.{LATER_FIELD}"
            assert installed_crd(cluster) == written_crd(crd) | {field}
            # Its pods are of this tree and later: with them the operator of the release has agents that it never saw.
            fresh = Service(cluster, bare_space, "fresh").apply(later_agents(cluster, bare_space, tiny)).wait_ready()
            fresh.patch({"partition": {LATER_FIELD: 7}})
            ignored = f"partition.{LATER_FIELD} is ignored: this version of the operator does not know it"
            wait_until(lambda: ignored in fresh.condition("SpecAccepted")["message"], describe=fresh.status)
            says_later_words(fresh)
            show(fresh, 50, 50)
            moves = len(pulse.took)
            wait_until(lambda: len(pulse.took) > moves + 2, describe=lambda: pulse.failed)
            newer, newer_rolled = fresh.lives(), templates(fresh)

            cluster.exec("helm", "rollback", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "180s")
            assert installed_crd(cluster) == written_crd(release.crd)
            says_later_words(fresh)
            show(fresh, 70, 60)
            fresh.wait_ready()
            assert LATER_FIELD not in fresh.get()["spec"]["partition"], "the older CRD knows no such field"
            moves = len(pulse.took)
            wait_until(lambda: len(pulse.took) > moves + 2, describe=lambda: pulse.failed)
        assert not pulse.failed
        assert max(pulse.took) <= SILENT_BEATS, pulse.took

        operator.uninstall()
        assert kept.get() and fresh.get(), "the services outlive the operator"
        asked = len(load.sent)
        wait_until(lambda: len(load.sent) >= asked + 8, describe=lambda: "no traffic while no operator is there")
        after.install()  # it is Ready when this returns
        kept.patch({"partition": manual(60, 60)})
        patched = kept.get()["metadata"]["generation"]
        spoke = heart.until(lambda: kept.status().get("observedGeneration") == patched, describe=kept.status)
        row = kept.row()
        assert spoke <= SILENT_BEATS, row
        # A new release has a new key, which reaches the pods with the kubelet's next sync.
        back = heart.until(lambda: applied(kept, 60, 60), 180, kept.status)
        kept.wait_ready()
        fresh.wait_ready()
    assert load.failures() == []
    assert (kept.lives(), templates(kept)) == (lives, rolled), "nothing rolled, nothing restarted"
    assert (fresh.lives(), templates(fresh)) == (newer, newer_rolled)
    for one in (kept, fresh):
        assert len(cluster.templates_written(bare_space, one.name)) == 1, "not even for a moment"
    print(
        f"{release.version} and back: {len(load.sent)} requests, none lost; {len(pulse.took)} moves of the split, "
        f"shown after {max(pulse.took)} beats at most; an operator that was back spoke after {spoke} ({row}), "
        f"and its agents answered {back} later"
    )
