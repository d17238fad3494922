"""The pods of one service over time: born, ready once their model is loaded, routed to, drained, gone.

A pod that is deleted gets no more requests, and is there, and paid for, until its last one is over. It knows no metric
and no autoscaler; where a request goes is the router's choice, of the pods that are ready at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from semipd_cli.simulator.engine import Arrival, Done
from semipd_cli.simulator.scaling.hpa import PodSeen
from semipd_cli.simulator.scaling.pod import Pod


class Router(StrEnum):
    LEAST_LOADED = "least-loaded"
    """The pod with the fewest requests that are not over, as an endpoint picker does; of equal ones the oldest."""
    ROUND_ROBIN = "round-robin"
    """One after the other, whatever they have to do."""


@dataclass(frozen=True)
class Start:
    """Seconds from a pod's creation on."""

    pending: float = 30.0
    """Until it runs: a node, images, its init container."""
    ready: float = 120.0
    """Until it serves: its model is loaded, too."""


@dataclass
class Replica:
    number: int
    born: float
    runs_at: float
    ready_at: float
    pod: Pod | None = None
    """None: it does not serve yet."""
    deleted_at: float | None = None
    gone_at: float | None = None


class Fleet:
    def __init__(self, count: int, birth: Callable[[int, float], Pod], start: Start, router: Router) -> None:
        """`count` pods that are ready. `birth`: makes a pod that serves, of its number and the second it does so."""
        self.now = 0.0
        self.replicas = count
        """As somebody set it last."""
        self._birth, self._start, self._router = birth, start, router
        self._all: list[Replica] = []
        self._turn = 0
        for _ in range(count):
            self._add(Start(0.0, 0.0))
        self._admit(0.0)

    # ---- who is there ------------------------------------------------------------------------------------------------

    @property
    def pods(self) -> list[Replica]:
        """Those that nobody has deleted."""
        return [one for one in self._all if one.deleted_at is None]

    @property
    def ready(self) -> list[Replica]:
        return [one for one in self.pods if one.pod is not None]

    @property
    def seen(self) -> list[PodSeen]:
        """As the autoscaler's controller sees them."""
        return [PodSeen(one.number, one.runs_at > self.now, one.pod is not None) for one in self.pods]

    @property
    def done(self) -> Iterator[Done]:
        """Requests that are over, of all pods that there ever were."""
        return (done for one in self._all if one.pod is not None for done in one.pod.engine.done)

    @property
    def moves(self) -> int:
        """Of splits, by all pods."""
        return sum(one.pod.moved for one in self._all if one.pod is not None)

    @property
    def drained(self) -> bool:
        return all(one.pod.engine.drained for one in self._all if one.pod is not None)

    def paid(self, until: float) -> float:
        """Replica-seconds: each pod from its creation to its end."""
        return sum(
            max(0.0, (until if one.gone_at is None else min(one.gone_at, until)) - one.born) for one in self._all
        )

    # ---- what happens ------------------------------------------------------------------------------------------------

    def scale(self, to: int) -> None:
        self.replicas = to
        there = self.pods
        for _ in range(to - len(there)):
            self._add(self._start)
        for one in victims(there, len(there) - to):
            one.deleted_at = self.now
            if one.pod is None:
                one.gone_at = self.now

    def advance(self, second: float, arrivals: Iterable[Arrival]) -> None:
        """To `second`, with these requests on the way; then each pod's agent looks, as it does once a second."""
        for arrival in arrivals:
            self._admit(arrival.at)
            ready = self.ready
            for one in ready:
                assert one.pod is not None
                one.pod.engine.run_until(arrival.at)
            chosen = self._choose(ready)
            assert chosen.pod is not None
            chosen.pod.engine.submit(arrival)
        self._admit(second)
        self.now = second
        for one in self._all:
            if one.pod is not None and one.gone_at is None:
                one.pod.tick(second)
                if one.deleted_at is not None and one.pod.engine.drained:
                    one.gone_at = second

    def _add(self, start: Start) -> None:
        self._all.append(Replica(len(self._all), self.now, self.now + start.pending, self.now + start.ready))

    def _admit(self, now: float) -> None:
        """Those whose time has come serve from now on."""
        for one in self.pods:
            if one.pod is None and one.ready_at <= now:
                one.pod = self._birth(one.number, one.ready_at)

    def _choose(self, ready: list[Replica]) -> Replica:
        """Raises ValueError where no pod is ready: an autoscaler keeps at least one."""
        if not ready:
            raise ValueError("no pod is ready")
        if self._router is Router.ROUND_ROBIN:
            self._turn += 1
            return ready[(self._turn - 1) % len(ready)]
        return min(ready, key=lambda one: one.pod.engine.in_work if one.pod is not None else 0)


def victims(pods: Iterable[Replica], count: int) -> list[Replica]:
    """Whom a ReplicaSet deletes: pods that are not ready before those that are, and young ones before old ones
    (https://kubernetes.io/docs/concepts/workloads/controllers/replicaset, "Scaling a ReplicaSet")."""
    order = sorted(pods, key=lambda one: (one.pod is not None, -one.born, -one.number))
    return order[: max(0, count)]
