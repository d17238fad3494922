"""Shows a status outside of a cluster: on a line, and in a file."""

from __future__ import annotations

import json
from pathlib import Path

from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND, SemiPDService, dump_status
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus


def status_line(status: SemiPDServiceStatus) -> str:
    """The columns of ``kubectl get spd`` on one line."""
    ready, slo = status.condition("Ready"), status.condition("SLOAttained")
    partition, latencies = status.partition, status.slo
    cells = {
        "ready": ready.status if ready else "Unknown",
        "reason": status.reason,
        "split": partition.summary if partition else "",
        "enforced": partition.enforced if partition else "",
        "ttft": latencies.ttft.summary if latencies and latencies.ttft else "",
        "tpot": latencies.tpot.summary if latencies and latencies.tpot else "",
        "slo": slo.status if slo else "",
    }
    line = "  ".join(f"{name}={value}" for name, value in cells.items() if value)
    return line if not ready or ready.status == "True" or not ready.message else f"{line}  ({ready.message})"


def write_status(path: Path, service: SemiPDService, status: SemiPDServiceStatus) -> None:
    """The object as the API server would show it, replaced whole: a reader never sees a part."""
    obj = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": service.metadata.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "spec": service.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": dump_status(status),
    }
    fresh = path.with_name(path.name + ".fresh")
    fresh.write_text(json.dumps(obj, indent=2) + "\n")
    fresh.replace(path)
