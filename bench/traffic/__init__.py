"""Open-loop load for an OpenAI-compatible server: plans (`plan`), the client (`client`), what came back (`records`)."""

from bench.traffic.client import replay, served_model
from bench.traffic.plan import Request, ask, poisson_plan, prompt_ids, read_trace, trace_plan
from bench.traffic.records import Record, Summary, Target, summarise

__all__ = [
    "Record",
    "Request",
    "Summary",
    "Target",
    "ask",
    "poisson_plan",
    "prompt_ids",
    "read_trace",
    "replay",
    "served_model",
    "summarise",
    "trace_plan",
]
