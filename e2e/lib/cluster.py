"""The live local cluster as tests use it: its commands, images, its network. It starts nothing."""

from contextlib import AbstractContextManager
from pathlib import Path

from e2e.lib.kube import CLUSTER as COMMAND
from e2e.lib.kube import Kube
from localkube import namespaces
from localkube.imageload import load
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

    def network(self) -> AbstractContextManager[None]:
        """Inside the block this thread's sockets are in the cluster's network: pod and Service addresses answer."""
        return namespaces.network_of(self.state.require_supervisor())
