"""From what is observed to the status that is shown. Pure: the clock is a value in `observed.Observed`."""

from semipd_operator.status.observed import AgentView, AutoscalerView, Observed, PodView, Problem
from semipd_operator.status.summarise import summarise

__all__ = ["AgentView", "AutoscalerView", "Observed", "PodView", "Problem", "summarise"]
