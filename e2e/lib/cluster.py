"""The live local cluster as tests use it: its commands, images, its network. It starts nothing."""

import json
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from e2e.lib.kube import CLUSTER as COMMAND
from e2e.lib.kube import Kube, Object
from localkube import namespaces
from localkube.imageload import load
from localkube.render import AUDIT_LOG
from localkube.state import State

CLUSTER = Path(COMMAND[-1])
OPERATOR_IMAGE = "localhost/semipd/operator:dev"
ENGINE_IMAGE = "localhost/semipd/engine:dev"


class Cluster(Kube):
    def __init__(self, state: State) -> None:
        super().__init__([*COMMAND, "exec", "--"], {"SEMIPD_RUN": str(state.root)})
        self.state = state

    def load(self, *images: str) -> None:
        """Makes images of `images/build` known to the node."""
        for image in images:
            load(self.state, image)

    def templates_written(self, namespace: str, deployment: str) -> list[Object]:
        """The different pod templates that a Deployment has ever had, by the API server's audit log."""
        found: list[Object] = []
        for line in (self.state.logs / AUDIT_LOG).read_text().splitlines():
            event = json.loads(line)
            reference, body = event["objectRef"], event.get("responseObject") or {}
            if (reference["namespace"], reference.get("name") or body["metadata"].get("name")) == (
                namespace,
                deployment,
            ):
                template = (body.get("spec") or {}).get("template")
                if template is not None and template not in found:
                    found.append(template)
        return found

    def network(self) -> AbstractContextManager[None]:
        """Inside the block this thread's sockets are in the cluster's network: pod and Service addresses answer."""
        return namespaces.network_of(self.state.require_supervisor())

    def reaches(self, host: str, port: int) -> bool:
        with self.network():
            try:
                socket.create_connection((host, port), 1).close()
            except OSError:
                return False
        return True
