"""Where the threads of a process may run, and where they begin."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator

import pytest

from semipd_engine.pacing.cpus import pin_all_threads, spread_all_threads


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, list[set[int]]]]:
    """What the kernel was asked for, by thread, beside two threads that wait. CPU 3 may not be used."""
    found: dict[int, list[set[int]]] = defaultdict(list)

    def take(tid: int, cpus: Collection[int]) -> None:
        if set(cpus) == {3}:
            raise OSError(22, "Invalid argument")
        found[tid].append(set(cpus))

    monkeypatch.setattr(os, "sched_setaffinity", take)
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield found
    over.set()
    for thread in threads:
        thread.join()


def test_each_thread_begins_on_a_cpu_of_its_own_and_may_run_on_any(asked: dict[int, list[set[int]]]) -> None:
    pin_all_threads((0, 1))
    first, *others = (asked[tid] for tid in sorted(asked))
    assert (first[0], first[-1]) == ({0}, {0, 1}), "the main thread"
    assert others[:2] == [[{1}, {0, 1}], [{0}, {0, 1}]]


def test_spread_threads_keep_to_cpus_of_their_own(asked: dict[int, list[set[int]]]) -> None:
    assert spread_all_threads((1, 0)) == len(asked)
    first, *others = (asked[tid] for tid in sorted(asked))
    assert first == [{1}]
    assert others[:2] == [[{0}], [{1}]]


def test_where_one_cpu_was_taken_away_the_others_are_used(asked: dict[int, list[set[int]]]) -> None:
    pin_all_threads((3, 1))
    assert all(masks[-1] == {1, 3} for masks in asked.values()) and os.getpid() in asked
    asked.clear()
    spread_all_threads((3, 1))
    first, *others = (asked[tid] for tid in sorted(asked))
    assert (first, others[:2]) == ([{1, 3}], [[{1}], [{1, 3}]])
    with pytest.raises(OSError, match="Invalid"):
        spread_all_threads((3,))


def test_one_cpu_is_asked_for_once(asked: dict[int, list[set[int]]]) -> None:
    pin_all_threads((1,))
    assert set(map(len, asked.values())) == {1}
