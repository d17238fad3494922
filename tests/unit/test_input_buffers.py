"""Where a step's inputs lie: each in a place of its own, at the same address, on a device by one copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from semipd_engine.worker.input_batch import InputBuffers, Ints

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


class Elsewhere(InputBuffers):
    """A device whose memory is not the host's: what was not copied is not there."""

    def _grow(self, given: dict[str, Ints]) -> None:  # type: ignore[override]
        super()._grow(given)
        self._there = torch.full_like(self._host, -7)


@pytest.mark.parametrize("rows", [1, 16, 33])
def test_all_of_a_step_gets_to_the_device(rows: int) -> None:
    buffers = Elsewhere(torch.device("cpu"))
    for number in (1, rows):
        given = inputs(number)
        found = buffers.put(given)
        assert all(np.array_equal(found[name].numpy(), values) for name, values in given.items())
