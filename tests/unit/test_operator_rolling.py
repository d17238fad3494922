"""What rolls a pod: the specification's own change, never another version's defaults, fields, images or renderings."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.unit.operator_rendered import SETTINGS, SLO, make, objects

from semipd_operator.render import Unrenderable, names, render
from semipd_operator.settings import Settings

pytestmark = pytest.mark.unit

NEWER = Settings(engine_image="engine:2", key=SETTINGS.key, version="2.0.0", image_pull_policy="Always")


def template(spec: dict[str, Any], live: dict[str, Any] | None, generation: int = 4, **options: Any) -> dict[str, Any]:
    rendered = render(make(spec, generation=generation), NEWER, live_deployment=live, **options)
    return next(obj for obj in rendered.objects if obj["kind"] == "Deployment")["spec"]["template"]


def image(spec: dict[str, Any], live: dict[str, Any] | None, generation: int = 4, **options: Any) -> str:
    found: str = template(spec, live, generation, **options)["spec"]["containers"][0]["image"]
    return found


def made_by_another_version(spec: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A Deployment whose record says of some fields what they were; None: that version did not know the field."""
    live = copy.deepcopy(objects(spec)["Deployment"])
    record = json.loads(live["metadata"]["annotations"][names.RECORD_ANNOTATION])
    for path, value in values.items():
        path = path.replace("__", ".")
        del record["values"][path]
        record["explicit"] = [one for one in record["explicit"] if one != path]
        if value is not None:
            record["values"][path] = value
    live["metadata"]["annotations"][names.RECORD_ANNOTATION] = json.dumps(record)
    return live


def test_a_new_operator_version_rolls_nothing() -> None:
    old = objects({})["Deployment"]
    assert template({}, old, generation=3) == old["spec"]["template"]
    assert template({"slo": SLO, "replicas": 3}, old) == old["spec"]["template"], "in place is no reason either"
    assert image({}, None) == "engine:2"


def test_the_last_words_of_an_added_container_wait_for_the_next_roll() -> None:
    """A Deployment of a version that did not ask for them."""
    spec = {"podTemplate": {"spec": {"initContainers": [{"name": "prepare", "image": "i"}]}}}
    old = json.loads(json.dumps(objects(spec)["Deployment"]).replace("FallbackToLogsOnError", "File"))
    kept = json.loads(old["metadata"]["annotations"][names.TEMPLATE_ANNOTATION])
    assert kept["spec"]["initContainers"][0]["terminationMessagePolicy"] == "File"
    again = template(spec, old, generation=3)["spec"]
    assert again == kept["spec"], "no pod rolls for it"
    changed = template(spec | {"engine": {"maxNumSeqs": 7}}, old)["spec"]["initContainers"][0]
    assert changed["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"engine": {"maxModelLen": 9}}),
        ({"engine": {"maxModelLen": 9}}, {}),
        ({}, {"engine": {"maxNumSeqs": 7}}),
        ({}, {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}),
        (
            {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}},
            {"podTemplate": {"spec": {"nodeSelector": {"a": "c"}}}},
        ),
        ({"model": {"uri": "hf://a/b", "cache": {"emptyDir": {"sizeLimit": "1Gi"}}}}, {"model": {"uri": "hf://a/b"}}),
        ({"model": {"uri": "hf://a/b"}}, {"model": {"uri": "hf://a/b", "cache": {"emptyDir": {}}}}),
        ({}, {"engine": {"resources": {"limits": {"cpu": 1}}}}),
        ({}, {"upgradePolicy": "Auto"}),
    ],
)
def test_a_change_of_what_rolls_takes_the_new_version_along(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert image(after, objects(before)["Deployment"]) == "engine:2"


def test_a_changed_default_rolls_nothing_until_the_specification_changes() -> None:
    # The default was 96 and is another now. Where the API server had stored it, it looks like the user's own value ...
    stored = made_by_another_version({}, engine__maxNumSeqs=96)
    assert image({"engine": {"maxNumSeqs": 96}}, stored, generation=9) == "engine:1"
    # ... and where the new CRD fills it in, like a change. An autoscaler's write makes a generation of either.
    assert image({"replicas": 5}, stored, generation=9) == "engine:1"
    assert image({"engine": {"maxNumSeqs": 97}}, stored) == "engine:2"


def test_a_value_that_is_set_to_the_new_default_is_a_change_once_the_new_version_has_seen_the_old() -> None:
    stored = made_by_another_version({}, engine__maxNumSeqs=96)
    rendered = render(make({"engine": {"maxNumSeqs": 96}}, generation=3), NEWER, live_deployment=stored)
    seen = next(obj for obj in rendered.objects if obj["kind"] == "Deployment")
    assert image({}, seen) == "engine:2"


def test_a_new_field_rolls_nothing_at_its_default_and_does_when_it_is_set() -> None:
    stored = made_by_another_version({}, engine__maxNumSeqs=None)
    assert image({}, stored) == "engine:1"
    assert image({"engine": {"maxNumSeqs": 7}}, stored) == "engine:2"


def test_a_field_of_a_newer_version_survives_a_rollback_and_the_way_back() -> None:
    newer = copy.deepcopy(objects({})["Deployment"])
    record = json.loads(newer["metadata"]["annotations"][names.RECORD_ANNOTATION])
    record["values"]["engine.future"] = "x"
    record["explicit"].append("engine.future")
    newer["metadata"]["annotations"][names.RECORD_ANNOTATION] = json.dumps(record)
    rolled_back = render(make({"replicas": 2}, generation=8), NEWER, live_deployment=newer)
    after = next(obj for obj in rolled_back.objects if obj["kind"] == "Deployment")
    assert after["spec"]["template"] == newer["spec"]["template"]
    kept = json.loads(after["metadata"]["annotations"][names.RECORD_ANNOTATION])
    assert kept["values"]["engine.future"] == "x" and "engine.future" in kept["explicit"]


def test_a_damaged_template_is_rendered_anew_and_a_lost_record_is_not() -> None:
    old = objects({})["Deployment"]
    for annotation, expected in ((names.TEMPLATE_ANNOTATION, "engine:2"), (names.RECORD_ANNOTATION, "engine:1")):
        damaged = copy.deepcopy(old)
        damaged["metadata"]["annotations"][annotation] = "{"
        assert image({}, damaged) == expected


def test_a_service_that_was_made_anew_counts_generations_anew() -> None:
    """Deleted with ``--cascade=orphan`` and made with another specification, it may have got as far as the old one."""
    old = objects({"replicas": 2})["Deployment"]
    nobodys = copy.deepcopy(old)
    record = json.loads(nobodys["metadata"]["annotations"][names.RECORD_ANNOTATION])
    assert record.pop("uid") == "uid-1"
    nobodys["metadata"]["annotations"][names.RECORD_ANNOTATION] = json.dumps(record)

    def rolled(spec: dict[str, Any], live: dict[str, Any], uid: str) -> Any:
        service = make(spec, generation=3)
        service = service.model_copy(update={"metadata": service.metadata.model_copy(update={"uid": uid})})
        rendered = render(service, NEWER, live_deployment=live)
        return next(obj for obj in rendered.objects if obj["kind"] == "Deployment")

    changed = {"engine": {"maxNumSeqs": 7}}

    def images(live: dict[str, Any], uid: str) -> list[str]:
        made = (rolled(spec, live, uid) for spec in ({}, changed))
        return [one["spec"]["template"]["spec"]["containers"][0]["image"] for one in made]

    assert images(old, "uid-2") == ["engine:1", "engine:2"], "what is as before rolls nothing"
    assert images(old, "uid-1") == images(nobodys, "uid-2") == ["engine:1", "engine:1"], "a generation has one content"
    kept = rolled({}, nobodys, "uid-2")["metadata"]["annotations"][names.RECORD_ANNOTATION]
    assert json.loads(kept)["uid"] == "uid-2", "an older version's record is brought up to date"


def test_what_cannot_be_read_leaves_the_pods_as_they_are() -> None:
    old = objects({"engine": {"maxNumSeqs": 7}})["Deployment"]
    held = render(make({"upgradePolicy": "Auto"}, generation=9), NEWER, live_deployment=old, hold=True)
    pods = next(obj for obj in held.objects if obj["kind"] == "Deployment")
    assert pods["spec"]["template"] == old["spec"]["template"]
    assert pods["metadata"]["annotations"] == old["metadata"]["annotations"], "the next version judges what changed"
    with pytest.raises(Unrenderable):
        render(make({}), NEWER, hold=True)
