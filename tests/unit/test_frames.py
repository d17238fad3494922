"""The frame codec: messages survive any cut of the byte stream, descriptors arrive with their message."""

from __future__ import annotations

import os
import socket

import pytest

from semipd_engine.ipc.frames import BlockingChannel, ChannelClosed, Decoder, FrameError, encode
from semipd_engine.ipc.requests import AbortRequest, AddRequest, ApiToCore, CoreToApi, Outputs, RequestOutput
from semipd_engine.ipc.tokens import Sampling, TokenLogprobs, pack_logprobs, unpack_logprobs
from semipd_engine.ipc.workers import ResidentToCore, Spawned

pytestmark = pytest.mark.unit

MESSAGES = [
    AddRequest(key="a", prompt_token_ids=list(range(1000)), sampling=Sampling(seed=7), received_at=1.5),
    AbortRequest(key="a"),
    AbortRequest(key=""),
]


@pytest.mark.parametrize("cut", [1, 3, 5, 1 << 20])
def test_messages_survive_every_cut(cut: int) -> None:
    stream = b"".join(encode(m) for m in MESSAGES)
    decoder: Decoder[ApiToCore] = Decoder(ApiToCore)
    got = [m for at in range(0, len(stream), cut) for m in decoder.feed(stream[at : at + cut])]
    assert got == MESSAGES


def test_the_logprobs_of_a_prompt_travel_packed() -> None:
    scores = [TokenLogprobs(-1.5, [(7, -0.5), (3, -1.5)], 2), TokenLogprobs(-2.0)]
    outputs = [RequestOutput("a", [1], prompt_logprobs=pack_logprobs(each)) for each in (scores, [])]
    (got,) = Decoder[CoreToApi](CoreToApi).feed(encode(Outputs([*outputs, RequestOutput("b")])))
    assert isinstance(got, Outputs)
    assert [unpack_logprobs(output.prompt_logprobs) for output in got.outputs] == [scores, [], []]


def test_foreign_bytes_are_refused() -> None:
    with pytest.raises(FrameError, match="limit"):
        Decoder(ApiToCore).feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(FrameError):
        Decoder(ApiToCore).feed(encode(Spawned(phase="prefill", generation=1, pid=1)))


def test_descriptors_travel_with_their_message() -> None:
    left, right = socket.socketpair()
    sender: BlockingChannel[ResidentToCore] = BlockingChannel(left, ResidentToCore)
    receiver: BlockingChannel[ResidentToCore] = BlockingChannel(right, ResidentToCore)
    read_end, write_end = os.pipe()
    sender.send(Spawned(phase="decode", generation=2, pid=3), fds=(write_end,))
    os.close(write_end)
    assert receiver.recv() == Spawned(phase="decode", generation=2, pid=3)
    os.write(receiver.fds.popleft(), b"through")
    assert os.read(read_end, 16) == b"through"
    assert receiver.recv(timeout=0.01) is None
    sender.close()
    with pytest.raises(ChannelClosed):
        receiver.recv()
