"""Sends the requests that schemathesis makes of a server's `/openapi.json`, and prints what came back, as JSON: the
statuses of each operation, those with a status that the document does not have or of 500 and above, and a few refusals.

Runs in an environment of its own: ``python generated_requests.py URL REQUESTS``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import schemathesis  # type: ignore[import-not-found]  # of that environment
from hypothesis import HealthCheck, Phase, given, settings

PATIENCE_SECONDS = 60
MANY = 20
"""Refusals that are shown."""


def send(operation: Any, url: str, requests: int) -> dict[str, Any]:
    """Up to so many requests to one operation; all of them, whatever comes back."""
    documented = operation.definition.raw["responses"]
    answers: Counter[int] = Counter()
    undocumented: list[list[str]] = []
    refused: list[list[str]] = []

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    @settings(
        max_examples=requests,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=url, timeout=PATIENCE_SECONDS)
        answers[response.status_code] += 1
        told = [response.text[:300], repr(case.body)[:300]]
        if str(response.status_code) not in documented or response.status_code >= 500:
            undocumented.append(told)
        elif response.status_code != 200 and len(refused) < MANY:
            refused.append(told)

    ask()
    return {"answers": answers, "undocumented": undocumented, "refused": refused}


def main(url: str, requests: int) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]  # raises for one that it cannot read
    print(json.dumps({operation.label: send(operation, url, requests) for operation in operations}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
