"""The operator's Helm release, with the images of a tree instead of the chart's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from e2e.lib.kube import ROOT, Kube
from e2e.lib.waiting import wait_until

CHART: Path = ROOT / "charts" / "semipd-operator"
RELEASE, SYSTEM = "semipd", "semipd-system"
OPERATOR = "deployment/semipd-semipd-operator"
DEV_IMAGES = {"operator": "localhost/semipd/operator:dev", "engine": "localhost/semipd/engine:dev"}


class Operator:
    """The release by name; it need not exist yet. `images`: with their tags, by `operator` and `engine`."""

    def __init__(self, kube: Kube, images: Mapping[str, str] = DEV_IMAGES, chart: Path = CHART) -> None:
        self.kube, self._images, self._chart = kube, images, chart

    def install(self, *options: str) -> str:
        """Returns what Helm printed."""
        return self._helm("install", "--create-namespace", *options)

    def upgrade(self, *options: str) -> str:
        """With the chart's own values but for `options`."""
        return self._helm("upgrade", "--reset-values", *options)

    def ensure(self, *options: str) -> str:
        """Upgrades what is there, else installs; the CustomResourceDefinition is served when it returns."""
        said = self._helm("upgrade", "--install", "--create-namespace", *options)
        self.kube.kubectl("wait", "--for=condition=Established", "crd/semipdservices.semipd.io", "--timeout=120s")
        return said

    def _helm(self, *verb_and_options: str) -> str:
        verb, *options = verb_and_options
        for name, key in {"image": "operator", "engine.image": "engine"}.items():
            repository, _, tag = self._images[key].rpartition(":")
            options += ["--set", f"{name}.repository={repository}", "--set-string", f"{name}.tag={tag}"]
        command = ("helm", verb, RELEASE, str(self._chart), "--namespace", SYSTEM)
        return self.kube.exec(*command, *options, "--wait", "--timeout", "180s").stdout

    def uninstall(self) -> None:
        command = ("helm", "uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found")
        self.kube.exec(*command, "--wait", "--timeout", "180s")

    def scale(self, replicas: int) -> None:
        self.kube.kubectl("--namespace", SYSTEM, "scale", OPERATOR, f"--replicas={replicas}")
        pods = ("--namespace", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "json")

        def there() -> bool:
            found = json.loads(self.kube.kubectl(*pods))["items"]
            ready = [c for pod in found for c in pod["status"].get("conditions", []) if c["type"] == "Ready"]
            return len(found) == replicas and all(c["status"] == "True" for c in ready)

        wait_until(there, 60, lambda: f"operator at {replicas} replicas")

    def log(self) -> str:
        return self.kube.exec("kubectl", "--namespace", SYSTEM, "logs", OPERATOR, check=False).stdout
