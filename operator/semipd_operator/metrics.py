"""The operator's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter("semipd_operator_reconciles_total", "Reconciles by result: done, retried.", ["result"])
RECONCILE_SECONDS = Histogram("semipd_operator_reconcile_seconds", "Duration of a reconcile, seconds.")
APPLIES = Counter("semipd_operator_applies_total", "Server-side applies of child objects, by kind.", ["kind"])
STATUS_WRITES = Counter("semipd_operator_status_writes_total", "Writes of a status.")
AGENT_POLLS = Counter("semipd_operator_agent_polls_total", "Looks at agents by result: answered, failed.", ["result"])
SERVICES = Gauge("semipd_operator_services", "SemiPDServices that the operator looks after.")
QUEUE_LENGTH = Gauge("semipd_operator_queue_length", "Services waiting for a reconcile or in one.")
RIGHTS_MISSING = Gauge(
    "semipd_operator_rights_missing",
    "Lists or watches that RBAC refuses now, by resource and verb; with watchNamespaces each namespace counts.",
    ["resource", "verb"],
)
