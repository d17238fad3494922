"""What `summarise` is given: the service, its pods, what their agents said, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from semipd_agent.contract import AgentConfig, Mode, PartitionState, StatusReport
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus

STALE_AFTER = timedelta(seconds=10)
"""Age above which a report proves nothing any more."""
UNHEARD_AFTER = timedelta(seconds=30)
"""An agent answers a few seconds after its container's start, long before the engine is ready."""


@dataclass(frozen=True)
class Problem:
    """Why something is not as it should be. `detail` is the object at fault, e.g. a resource's name."""

    reason: str
    message: str
    detail: str = ""
    exit_code: int | None = None
    for_now: bool = False
    """It may well be over in a moment: no reason to take Ready back."""
    remedy: str = ""
    """What to do about it, where that of the reason does not fit."""
    until: datetime | None = None
    """It is over then unless something happens; None: nobody can say."""

    def over(self, now: datetime) -> bool:
        return self.until is not None and now >= self.until


@dataclass(frozen=True)
class Disruption:
    """That the cluster takes a pod away: the pod's condition DisruptionTarget."""

    reason: str
    words: str
    at: datetime | None = None
    """None: nobody says when."""

    @property
    def preempts(self) -> bool:
        """For one of a higher priority, by the scheduler."""
        return self.reason == "PreemptionByScheduler"


@dataclass(frozen=True)
class PodView:
    """One pod as the API server shows it."""

    name: str
    uid: str
    node: str = ""
    ip: str = ""
    ready: bool = False
    ready_since: datetime | None = None
    """When the condition Ready last changed; without it, when the pod was created."""
    terminating: bool = False
    disruption: Disruption | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    """It failed, or was evicted, and runs no more: its ReplicaSet has made another, and leaves it where it is."""
    template_hash: str = ""
    stranger: str = ""
    """Who controls it, if it is not the service's Deployment: it only bears the labels, as a copy does."""
    downloading: bool = False
    """The init container `model` runs."""
    started: bool = False
    """The container `engine` runs."""
    started_at: datetime | None = None
    """Since when it does."""
    served: bool = False
    """The engine was ready since its last start."""
    held: Problem | None = None
    """A container, not ours, that the pod waits for: to end, or to be ready as the engine is."""
    held_since: datetime | None = None
    """Since when it runs, or was seen to be waited for."""
    unproved: str = ""
    """The kind of probe, startup or readiness, that has not succeeded yet of the engine, which runs."""
    probe_words: str = ""
    """What the kubelet says of it; asked for only where the engine serves."""
    restarted: tuple[tuple[str, datetime | None], ...] = ()
    """The containers that ended and were not ready since, and when the run began that ended, by the node's clock."""
    model_revision: str = ""
    """The commit that the init container `model` brought."""
    claims: str = ""
    """Of its volumes, with commas."""
    preparing_since: datetime | None = None
    """Since when the kubelet has been making its volumes and network; None: it is not."""
    complaint: Problem | None = None
    """What the kubelet, or the controller that attaches volumes, says of that; asked for only where it takes long."""
    unseen_since: datetime | None = None
    """Since when no scheduler has looked at it; None: one has."""
    unseen: Problem | None = None
    """What to say of that."""
    pulling: str = ""
    """The container whose image the node fetches."""
    gpu_sharing: str = ""
    """How its node's device plugin gives one GPU to several pods, as the node's label says it; empty: it does not."""
    node_owes: bool = False
    """Its node, or what taints nodes have, was asked for and is not known yet: no watch will tell when it is."""
    node_problem: Problem | None = None
    """What is wrong with its node; asked for only where the pod is not ready."""
    problem: Problem | None = None
    """Why the pod cannot start or stay."""
    model_problem: Problem | None = None
    """Why the model cannot come."""

    @property
    def stays(self) -> bool:
        """It neither ended nor is about to."""
        return not self.terminating and self.ended_at is None


@dataclass(frozen=True)
class AgentView:
    """What one agent said last, by the operator's clock."""

    report: StatusReport | None = None
    received_at: datetime | None = None
    error: str = ""
    """Why the last poll failed; empty if it did not."""
    adjusting_since: datetime | None = None
    serves_since: datetime | None = None
    """Since when it says that the engine is ready; None: it does not."""
    behind_since: datetime | None = None
    """Since when it has not had the configuration that it should have; None: it has."""
    asked_since: datetime | None = None
    """Since when this process asks it, for one that was never heard: after a restart every agent is new."""

    def fresh(self, now: datetime) -> bool:
        return self.report is not None and self.received_at is not None and now - self.received_at <= STALE_AFTER

    def heard(self, report: StatusReport, now: datetime, wanted: AgentConfig | None = None) -> AgentView:
        """The view after a report; remembers since when the engine serves, and the split is not (yet) as asked for."""
        moving = report.partition.state is PartitionState.ADJUSTING
        behind = wanted is not None and not _follows(report, wanted)
        return AgentView(
            report=report,
            received_at=now,
            adjusting_since=(self.adjusting_since or now) if moving else None,
            serves_since=(self.serves_since or now) if report.engine.ready else None,
            behind_since=(self.behind_since or now) if behind else None,
        )

    def slept(self, seconds: float, now: datetime) -> AgentView:
        """The view after a time in which nobody could have asked: it makes nothing older. Below 0: the clock was set
        back."""
        gap = timedelta(seconds=seconds)
        times = ("received_at", "adjusting_since", "serves_since", "behind_since", "asked_since")
        moved = {name: min(at + gap, now) for name in times if (at := getattr(self, name)) is not None}
        return replace(self, **moved)

    def failed(self, error: str) -> AgentView:
        return replace(self, error=error)


def _follows(report: StatusReport, wanted: AgentConfig) -> bool:
    """Whether the agent has the configuration; an agent that does not know a word of it has it and says another. One of
    a later generation takes none of this one."""
    has, asked = report.partition, wanted.partition
    if report.lacks(wanted) or report.config_generation > wanted.generation or has.mode != asked.mode:
        return False
    return asked.mode is not Mode.MANUAL or has.requested == asked.split


@dataclass(frozen=True)
class AutoscalerView:
    """The service's autoscaler as the API server shows it."""

    kind: str
    found: bool
    known: bool = True
    """The cluster knows the kind."""
    refusal: str = ""
    """The API server's words where the operator may not read the kind."""
    metrics_owner: str = ""
    """Who is registered for external.metrics.k8s.io, if it is not this operator."""
    metrics_served: bool = True
    """Some server answers for external.metrics.k8s.io; KEDA brings its own."""
    conditions: Mapping[str, Problem] = field(default_factory=lambda: MappingProxyType({}))
    """Those that are False, by type."""
    active: bool = False
    """It says itself that it can scale."""
    at_max: bool = False
    """It would make more pods than it may."""


@dataclass(frozen=True)
class Observed:
    service: SemiPDService
    now: datetime
    pods: tuple[PodView, ...] = ()
    agents: Mapping[str, AgentView] = field(default_factory=lambda: MappingProxyType({}))
    """By the pod's uid."""
    template_hash: str = ""
    url: str = ""
    selector: str = ""
    problem: Problem | None = None
    """Why the specification could not be put in force."""
    ignored: tuple[str, ...] = ()
    """Fields of the specification that this version does not know."""
    lacking: tuple[str, ...] = ()
    """What was asked for and is done without, each with the reason."""
    stalled: str = ""
    """The Deployment's words for a rollout that takes longer than its deadline."""
    unexposed: str = ""
    """Why the Service cannot be reached from outside, though it should be."""
    refusal: Problem | None = None
    """Why the API server does not let further pods be created."""
    strangers: tuple[str, ...] = ()
    """Pods of someone else that bear the service's labels, and so get its requests; with their owners."""
    additions: tuple[str, ...] = ()
    """What others have set in our Deployment and stays there: a manager and its fields each."""
    foreign_scaler: str = ""
    """An autoscaler of someone else that scales our Deployment."""
    growth: float = 1.0
    """By how much requests are expected to grow until a pod that is ordered now serves."""
    autoscaler: AutoscalerView | None = None
    """None without spec.autoscaling, and without Kubernetes."""
    preempted: PodView | None = None
    """The last one that was, as it was seen last: it is gone in a moment."""
    ahead: timedelta = timedelta()
    """How far the API server's clock, by which that was, is ahead of ours."""
    previous: SemiPDServiceStatus = field(default_factory=SemiPDServiceStatus)

    @property
    def live_pods(self) -> tuple[PodView, ...]:
        """Pods that are to stay, by name."""
        return tuple(sorted((pod for pod in self.pods if pod.stays), key=lambda pod: pod.name))

    @property
    def ready_pods(self) -> tuple[PodView, ...]:
        return tuple(pod for pod in self.live_pods if pod.ready)

    @property
    def outdated_pods(self) -> tuple[PodView, ...]:
        """Pods of another template than the current one."""
        return tuple(pod for pod in self.live_pods if pod.template_hash != self.template_hash)

    def agent(self, pod: PodView) -> AgentView:
        return self.agents.get(pod.uid, AgentView())

    def unheard(self, pod: PodView) -> str:
        """Why nothing is known of a pod whose engine was started long ago; empty: something is, or was a moment ago (a
        busy node), or it is young."""
        agent = self.agent(pod)
        if self.report(pod) is not None or pod.started_at is None:
            return ""
        since = max(pod.started_at, agent.received_at or pod.started_at)
        return agent.error if self.now - since > UNHEARD_AFTER else ""

    def report(self, pod: PodView) -> StatusReport | None:
        """The pod's report while it is fresh."""
        view = self.agent(pod)
        return view.report if view.fresh(self.now) else None
