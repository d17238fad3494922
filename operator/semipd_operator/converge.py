"""One attempt to put a specification in force: render it, apply it, and say what came of it.

It knows neither whose the service is nor what its status shows: see `reconcile`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

from semipd_operator.answers import ApiRefused
from semipd_operator.api.v1alpha1.resource import Reading
from semipd_operator.children import Blocked, Children, Overtaken, Reach
from semipd_operator.reasons import SpecReason
from semipd_operator.render import InvalidTemplate, Kind, Object, Unrenderable, asked_for, names, render
from semipd_operator.render.rolling import ROLLING_FIELDS
from semipd_operator.settings import Settings
from semipd_operator.status import Problem
from semipd_operator.workqueue import Key

log = logging.getLogger(__name__)

_SOMEONE_ELSE = (
    "Something else changes that object again and again: kubectl get it with -o yaml --show-managed-fields, and have "
    "the manager that it names leave it alone."
)


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt to put a specification in force."""

    template_hash: str
    """Empty: it could not be found out."""
    problem: Problem | None = None
    again: bool = False
    signed: bool = False
    """Our name is on the ConfigMap: we have just written it, or it stands as we would."""
    overtaken: bool = False
    """Someone else wrote first: what is there has to be judged again, and until then there is nothing to say."""
    reach: Reach = field(default_factory=Reach)
    lacking: tuple[Kind, ...] = ()
    """Optional kinds that were asked for and done without."""


async def converge(
    children: Children, settings: Settings, key: Key, reading: Reading, *, model_revision: str, judged: str
) -> Outcome:
    """`judged`: the version of the ConfigMap by which the service is ours; empty: there was none.

    Whatever the API server refuses becomes a problem: the status is shown all the same. Raises `ApiAway`.
    """
    outcome = await _attempt(children, settings, key, reading, model_revision, judged)
    if outcome.signed or outcome.overtaken:
        return outcome
    # Not all of the specification is in force. The agents are asked all the same, by tokens of today's keys.
    try:
        return replace(outcome, signed=await children.put_digests(key, reading.service, settings, judged))
    except Blocked as blocked:
        return replace(outcome, problem=outcome.problem or blocked.problem, again=True)
    except Overtaken as overtaken:
        return _overtaken(key, outcome, overtaken)


async def _attempt(
    children: Children, settings: Settings, key: Key, reading: Reading, model_revision: str, judged: str
) -> Outcome:
    service = reading.service
    try:
        live = children.own_deployment(service)
        reach = await children.reach(key, asked_for(service, settings))
    except ApiRefused as refused:
        return Outcome("", problem=_refused(refused), again=True)
    if service.spec.paused:
        return Outcome(_live_template_hash(live), reach=reach)
    hold = reading.unread_below(*ROLLING_FIELDS)
    try:
        rendered = render(
            service,
            settings,
            live_deployment=live,
            within_reach=reach.live,
            hold=hold,
            model_revision=model_revision,
        )
    except Unrenderable as error:
        return Outcome(_live_template_hash(live), Problem(SpecReason.INVALID_SPEC, str(error)), reach=reach)
    except InvalidTemplate as error:
        return Outcome(_live_template_hash(live), Problem(SpecReason.INVALID_POD_TEMPLATE, str(error)), reach=reach)
    outcome = Outcome(rendered.template_hash, reach=reach, lacking=rendered.lacking)
    try:
        await children.put(key, service, rendered, reach, judged)
    except Blocked as blocked:
        # Where the Deployment was not taken, what runs is what is to run for now: no rollout is under way.
        stays = _live_template_hash(children.own_deployment(service)) or outcome.template_hash
        return replace(outcome, template_hash=stays, problem=blocked.problem, again=blocked.again)
    except Overtaken as overtaken:
        return _overtaken(key, outcome, overtaken)
    except ApiRefused as refused:
        return replace(outcome, problem=_refused(refused), again=True)
    return replace(outcome, signed=True)


def _overtaken(key: Key, outcome: Outcome, overtaken: Overtaken) -> Outcome:
    log.info("%s: %s", key, overtaken)
    problem = Problem(SpecReason.APPLY_FAILED, str(overtaken), for_now=True, remedy=_SOMEONE_ELSE)
    return replace(outcome, problem=problem, again=True, overtaken=True)


def _refused(refused: ApiRefused) -> Problem:
    return Problem(SpecReason.APPLY_FAILED, str(refused), for_now=refused.for_now)


def _live_template_hash(live: Object | None) -> str:
    if live is None:
        return ""
    labels = live["spec"]["template"]["metadata"].get("labels") or {}
    return str(labels.get(names.TEMPLATE_HASH_LABEL, ""))
