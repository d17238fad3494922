"""The one loop that waits: it returns what came, and tells what did not."""

from __future__ import annotations

import asyncio

import pytest

from e2e.lib.waiting import NotInTime, wait_until, wait_until_async

pytestmark = pytest.mark.unit


def test_the_value_that_came_is_returned() -> None:
    values = iter([None, 0, "", "there"])
    assert wait_until(lambda: next(values), every_s=0) == "there"


def test_what_is_true_already_is_seen_without_any_time() -> None:
    assert wait_until(lambda: 7, timeout_s=0) == 7
    assert asyncio.run(wait_until_async(lambda: 7, timeout_s=0)) == 7


def test_without_a_description_the_source_and_the_last_value_are_told() -> None:
    with pytest.raises(NotInTime) as told:
        wait_until(lambda: [pod for pod in ("a", "b") if pod == "c"], 0)
    assert "not within 0 s: wait_until(lambda: [pod for pod in" in str(told.value)
    assert str(told.value).endswith("last []")

    def no_second_pod() -> bool:
        return False

    with pytest.raises(NotInTime, match=r"no_second_pod, last False$"):
        wait_until(no_second_pod, 0)
    with pytest.raises(NotInTime, match=r"dict\.keys, last dict_keys"):
        wait_until({}.keys, 0)


@pytest.mark.parametrize("describe", ["a second pod", lambda: "a second pod"])
def test_a_description_is_told_instead(describe: object) -> None:
    with pytest.raises(NotInTime, match=r"^not within 0 s: a second pod$"):
        wait_until(lambda: None, 0, describe)  # type: ignore[arg-type]


async def test_other_tasks_run_meanwhile() -> None:
    come = asyncio.Event()
    asyncio.get_running_loop().call_soon(come.set)
    assert await wait_until_async(come.is_set, every_s=0)
    with pytest.raises(NotInTime, match="nobody"):
        await wait_until_async(lambda: False, 0, "nobody")
