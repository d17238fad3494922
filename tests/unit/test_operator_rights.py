"""Lists and watches that RBAC refuses: told with the missing rule, once in a while, and when they are granted."""

from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from semipd_operator import metrics
from semipd_operator.rights import Rights
from semipd_operator.watches import Retries, kopf_settings

pytestmark = pytest.mark.unit


DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "semipd_operator.rights")
    return caplog


def missing(resource: str, verb: str) -> float | None:
    return REGISTRY.get_sample_value("semipd_operator_rights_missing", {"resource": resource, "verb": verb})


def test_a_refusal_names_kind_verb_and_rule_and_is_not_repeated_at_each_try(said: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    rights = Rights(clock)
    for _ in range(40):
        rights.answered("SemiPDService", "watch", "", 403)
        clock.now += 15
    assert [record.levelname for record in said.records] == ["WARNING"], "ten minutes"
    assert said.messages[0] == (
        "RBAC refuses watch semipdservices.semipd.io in all namespaces (403): changes of semipdservices are not heard "
        "until a ClusterRole grants it to the operator's ServiceAccount, as the chart's does: {apiGroups: [semipd.io], "
        "resources: [semipdservices], verbs: [list, watch]}. It is tried again by itself, every 15 s at last."
    )
    assert missing("semipdservices", "watch") == 1
    rights.answered("SemiPDService", "watch", "", 403)
    assert len(said.records) == 2, "but it is not forgotten either"
    rights.answered("SemiPDService", "watch", "", 503)
    assert len(said.records) == 2, "which says nothing of rights"
    rights.answered("SemiPDService", "watch", "", 200)
    rights.answered("SemiPDService", "watch", "", 200)
    assert said.messages[2:] == ["watch semipdservices.semipd.io in all namespaces is granted again, after 600 s"]
    assert missing("semipdservices", "watch") == 0


def test_each_namespace_and_each_verb_is_a_right_of_its_own(said: pytest.LogCaptureFixture) -> None:
    rights = Rights(Clock())
    for namespace, verb in itertools.product(("a", "b"), ("list", "watch")):
        rights.answered("Pod", verb, namespace, 403)
    assert len(said.records) == 4
    assert said.messages[0].startswith("RBAC refuses list pods in namespace a (403)")
    assert (
        "until a Role in a grants it" in said.messages[0] and '{apiGroups: [""], resources: [pods]' in said.messages[0]
    )
    rights.answered("Pod", "list", "a", 200)
    assert (missing("pods", "list"), missing("pods", "watch")) == (1, 2)


def test_docs_list_exactly_the_operators_metrics() -> None:
    section = DOCS.read_text().partition("## Of the operator")[2]
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| (.*?) \| (.*) \|$", section, re.MULTILINE)
    made = [one for one in vars(metrics).values() if isinstance(one, Counter | Gauge | Histogram)]
    ours = [
        (
            one._name + "_total" * isinstance(one, Counter),
            one._type,
            ", ".join(f"`{label}`" for label in one._labelnames) or "–",
            one._documentation,
        )
        for one in made
    ]
    assert rows == ours


def test_kopf_tries_again_without_an_end_and_not_all_the_time() -> None:
    """By itself it gives up after 54 s, and with one watch the whole operator ends."""
    assert list(itertools.islice(Retries(), 7)) == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    backoffs = kopf_settings().networking.error_backoffs
    assert isinstance(backoffs, Retries)
    assert list(itertools.islice(backoffs, 10_000))[-1] == 15.0
