"""A row of the table of failures, and the names that rows are written with."""

from __future__ import annotations

from dataclasses import dataclass

AGENT = "semipd_agent"
ENGINE = "semipd_engine"
MPS = f"{AGENT}.partitioner.mps"
CORE = f"{ENGINE}.core"
LIFE = "tests/unit/test_mps_lifecycle.py"
WORKERS = "tests/unit/test_mps_workers.py"
POD = "tests/unit/test_mps_process.py"
LOADED = "tests/unit/test_mps_engine.py"
PREFLIGHT = "tests/unit/test_mps_preflight.py"
KILLS = "tests/engine/test_processes_kills.py"
LAUNCHER = "tests/engine/test_processes_launcher.py"
RUNGS = "tests/engine/test_processes_rung_troubles.py"
ENDS = "tests/unit/test_worker_ends.py"
CUDA = "tests/unit/cuda/test_green.py"
LANES = "tests/unit/test_lanes.py"
GREEN = "tests/unit/test_mps_green.py"
STREAMS = "tests/engine/test_processes_green.py"
REFUSED = f"{GREEN}::test_a_refusal_is_told_by_name_and_remedy_and_mps_serves"
TROUBLE = f"{CUDA}::test_trouble_is_no_word_on_green_contexts_and_refuses_them"
HARMED = f"{GREEN}::test_a_refused_self_test_that_has_cost_the_server_costs_the_daemon_and_is_not_tried_again"
STARTS = f"{LIFE}::test_what_does_not_start_says_why_and_starts_once_it_can"
REFUSES = f"{PREFLIGHT}::test_each_refusal_has_its_reason_and_a_remedy"
WATCH = f"{MPS}.keeper:Keeper._watch"
LOSE = f"{MPS}.keeper:Keeper._lose"
AGAIN = "starts are tried again, with longer and longer pauses"


@dataclass(frozen=True)
class Failure:
    area: str
    what: str
    detector: str
    """``module:name`` of the code that notices."""
    handler: str
    """``module:name`` of the code that acts."""
    outcome: str
    """What users see, and what is lost. A name in it is a reason of the status or an exit."""
    tests: tuple[str, ...]
    """Node ids of tests that make it happen and see the outcome."""
    process: str = ""
    """Which process of the pod has died, if one has."""
