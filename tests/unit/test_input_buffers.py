"""A step's inputs: which they are, and where they lie: each in its own place, at the same address, by one copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.worker import input_batch
from semipd_engine.worker.input_batch import InputBatch, InputBuffers, Ints, Limits, host_memory

pytestmark = pytest.mark.unit


def inputs(rows: int, width: int = 3) -> dict[str, Ints]:
    """Values that tell every place from every other."""
    numbers = np.arange(rows * (width + 2), dtype=np.int32)
    tables = numbers[2 * rows :].reshape(rows, width)
    return {"token_ids": numbers[:rows], "positions": numbers[rows : 2 * rows], "block_tables": tables}


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 200])
def test_each_input_has_its_own_place(rows: int) -> None:
    given = inputs(rows)
    found = InputBuffers(torch.device("cpu")).put(given)
    assert all(np.array_equal(found[name].numpy(), values) for name, values in given.items())
    assert {found[name].dtype for name in found} == {torch.int32}


def test_addresses_stay_until_one_outgrows_its_room() -> None:
    buffers = InputBuffers(torch.device("cpu"))
    first = {name: tensor.data_ptr() for name, tensor in buffers.put(inputs(5)).items()}
    assert {name: tensor.data_ptr() for name, tensor in buffers.put(inputs(16)).items()} == first
    given = inputs(40)
    found = buffers.put(given)
    assert all(np.array_equal(found[name].numpy(), values) for name, values in given.items())
    assert {name: tensor.data_ptr() for name, tensor in buffers.put(inputs(2)).items()} == {
        name: tensor.data_ptr() for name, tensor in found.items()
    }


def test_a_table_of_another_width_has_room_of_its_own() -> None:
    buffers = InputBuffers(torch.device("cpu"))
    buffers.put(inputs(4, width=3))
    given = inputs(4, width=9)
    found = buffers.put(given)
    assert all(np.array_equal(found[name].numpy(), values) for name, values in given.items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("short", ["host", "device"])
def test_a_step_for_which_memory_was_short_spoils_no_later_one(
    device: str, short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the other side has its memory already would the two differ from then on."""
    buffers, zeros = InputBuffers(torch.device(device)), torch.zeros
    buffers.put(inputs(3))

    def poor(*shape: int, device: torch.device | None = None, **options: Any) -> torch.Tensor:
        if (short == "device") is (device is not None):
            raise torch.OutOfMemoryError("no room")
        return zeros(*shape, device=device, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", poor)
        if (device, short) != ("cpu", "device"):
            with pytest.raises(torch.OutOfMemoryError):
                buffers.put(inputs(40))
    for rows in (2, 40):
        given = inputs(rows)
        found = buffers.put(given)
        assert {tensor.device.type for tensor in found.values()} == {device}
        assert all(found[name].shape == values.shape for name, values in given.items())
        if device == "cpu":
            assert all(np.array_equal(found[name].numpy(), values) for name, values in given.items())


def test_a_row_goes_on_behind_all_of_its_tokens() -> None:
    """A chunk of three, one that samples nothing, and a decode row; then those that sample, then the last alone."""
    sampling = Sampling(max_tokens=9)
    rows = [
        Row(0, [11, 12, 13], 2, [1, 2], outputs="last", sampling=sampling),
        Row(1, [21, 22], 4, [3, 4]),
        Row(2, [31], 6, [5, 6, 7], outputs="last", sampling=sampling),
    ]
    batch = InputBatch(StepPlan(0, 3, rows), Limits(99, 8, 4, 12), InputBuffers(torch.device("cpu")))

    def step() -> tuple[list[int], ...]:
        given, sampled = batch.next()
        parts = (given.token_ids, given.positions, given.slot_mapping, given.seq_lens, given.query_start_loc, sampled)
        return tuple([int(number) for number in part] for part in parts)

    slots = [6, 7, 8, 16, 17, 26]
    assert step() == ([11, 12, 13, 21, 22, 31], [2, 3, 4, 4, 5, 6], slots, [5, 6, 7], [0, 3, 5, 6], [2, 5])
    batch.advance([14, 32], [0, 1])
    assert step() == ([14, 32], [5, 7], [9, 27], [6, 8], [0, 1, 2], [0, 1])
    batch.advance([15, 33], [1])
    assert step() == ([33], [8], [28], [9], [0, 1], [0])


class Elsewhere(InputBuffers):
    """A device whose memory is not the host's: what was not copied is not there."""

    def _grow(self, given: dict[str, Ints]) -> None:  # type: ignore[override]
        super()._grow(given)
        self._there = torch.full_like(self._host, -7)


def test_tables_cross_once_for_all_steps_of_a_plan_until_a_row_has_finished() -> None:
    """Of a long context they are megabytes; all that a step changes is a few numbers for each row."""
    sampling = Sampling(max_tokens=9)
    rows = [Row(n, [11 + n], 3, [2 * n, 2 * n + 1], outputs="last", sampling=sampling) for n in range(3)]
    batch = InputBatch(StepPlan(0, 4, rows), Limits(99, 8, 4, 12), Elsewhere(torch.device("cpu")))

    def step() -> tuple[list[int], list[list[int]]]:
        given, _ = batch.next()
        there = given.token_ids.tolist(), given.block_tables.tolist()
        given.block_tables.fill_(-7)
        return there

    assert step() == ([11, 12, 13], [[0, 1, 0], [2, 3, 0], [4, 5, 0]])
    batch.advance([21, 22, 23], [0, 1, 2])
    assert step() == ([21, 22, 23], [[-7] * 3] * 3), "nothing of them was copied"
    batch.advance([31, 32, 33], [0, 2])
    assert step() == ([31, 33], [[0, 1, 0], [4, 5, 0]])
    batch.advance([41, 43], [0, 1])
    assert step() == ([41, 43], [[-7] * 3] * 2)


@pytest.mark.parametrize("rows", [1, 16, 33])
def test_all_of_a_step_gets_to_the_device(rows: int) -> None:
    buffers = Elsewhere(torch.device("cpu"))
    for number in (1, rows):
        given = inputs(number)
        found = buffers.put(given)
        assert all(np.array_equal(found[name].numpy(), values) for name, values in given.items())


def test_what_is_not_named_stays_as_it_is() -> None:
    buffers = Elsewhere(torch.device("cpu"), ahead=True)
    given = inputs(9)
    found = buffers.put(given)
    later = {"positions": given["positions"] + 1}
    assert np.array_equal(buffers.put(later)["positions"].numpy(), later["positions"])
    for name in ("token_ids", "block_tables"):
        assert np.array_equal(found[name].numpy(), given[name])
    with pytest.raises(AssertionError, match="between"):
        buffers.put({name: given[name] for name in ("token_ids", "block_tables")})


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_that_is_queued_ahead_is_not_written_over_the_one_before(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy may not have been carried out yet: what the host wrote for it is there until the next but one."""
    host: list[Ints] = []

    def noted(count: int, pinned: bool) -> tuple[Ints, torch.Tensor]:
        made = host_memory(count, pinned)
        host.append(made[0])
        return made

    monkeypatch.setattr(input_batch, "host_memory", noted)
    buffers = InputBuffers(torch.device("meta"), ahead)
    del host[:]
    buffers.put(inputs(4))
    assert len(host) == 1 + ahead
    first = [numbers.copy() for numbers in host]
    buffers.put({name: values + 100 for name, values in inputs(4).items()})
    kept = [np.array_equal(now, before) for now, before in zip(host, first, strict=True)]
    assert kept == ([True, False] if ahead else [False])
    buffers.put({name: values + 200 for name, values in inputs(4).items()})
    assert not np.array_equal(host[0], first[0])
