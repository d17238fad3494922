"""Open-loop load for an OpenAI-compatible server: plans (`plan`), the client (`client`), what came back (`records`)."""

from bench.traffic.client import replay, served_model
from bench.traffic.plan import (
    Request,
    ask,
    gamma,
    mixed_plan,
    poisson,
    poisson_plan,
    prompt_ids,
    read_trace,
    trace_plan,
)
from bench.traffic.records import ClientLateError, Record, Summary, Target, assert_punctual, gaps, quantile, summarise

__all__ = [
    "ClientLateError",
    "Record",
    "Request",
    "Summary",
    "Target",
    "ask",
    "assert_punctual",
    "gamma",
    "gaps",
    "mixed_plan",
    "poisson",
    "poisson_plan",
    "prompt_ids",
    "quantile",
    "read_trace",
    "replay",
    "served_model",
    "summarise",
    "trace_plan",
]
