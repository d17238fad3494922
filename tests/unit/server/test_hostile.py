"""What careless and hostile clients send: each gets 200, or a 4xx that names what is wrong, and the next is served."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import httpx
import pytest
from tests.unit.server.api_process import Api

from e2e.lib.waiting import PATIENCE_S
from semipd_engine.server.errors import DEEPEST

pytestmark = pytest.mark.unit

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = '{"role": "user", "content": "x"}'


def nested(depth: int, inner: str = "1") -> str:
    return '{"a":' * depth + inner + "}" * depth


BODIES: list[tuple[str, str, str | None]] = [
    # A path, the body's text, and the field at fault; nothing: it is served.
    (COMPLETIONS, '{"prompt": "a", "prompt": "b", "max_tokens": 1}', None),
    (COMPLETIONS, '\ufeff{"prompt": "x", "max_tokens": 1}', None),
    (COMPLETIONS, '{"prompt": [5, 6.5]}', "prompt"),
    (COMPLETIONS, '{"prompt": [5, 1e999]}', "prompt"),
    (COMPLETIONS, '{"prompt": [5.0, 1' + "0" * 400 + "]}", "prompt"),
    (COMPLETIONS, '{"prompt": [[5.0], [-6.0]]}', "prompt"),
    (COMPLETIONS, '{"prompt": "x", "max_tokens": 3.0, "stream": null, "echo": null, "ignore_eos": null, "stop": null}',
     None),
    (COMPLETIONS, '{"prompt": "x", "return_token_ids": null, "skip_special_tokens": null, "min_tokens": null}', None),
    (COMPLETIONS, '{"prompt": "x", "priority": -9223372036854775808, "seed": -9223372036854775808}', None),
    (COMPLETIONS, '{"prompt": "x", "user": ' + nested(100) + "}", None),
    (COMPLETIONS, '{"prompt": "x", "temperature": NaN}', "temperature"),
    (COMPLETIONS, '{"prompt": "x", "temperature": Infinity}', "temperature"),
    (COMPLETIONS, '{"prompt": "x", "temperature": 1e999}', "temperature"),
    (COMPLETIONS, '{"prompt": "x", "temperature": "hot"}', "temperature"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {"5": NaN}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {"5": 1e999}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {"' + "9" * 5000 + '": 1}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {"five": 1}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": [1]}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {"1_0": 1}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {" 5": 1, "5": 2}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "logit_bias": {"\u0665": 1}}', "logit_bias"),
    (COMPLETIONS, '{"prompt": "x", "guided_json": []}', "guided_json"),
    (COMPLETIONS, '{"prompt": "x", "seed": 1' + "0" * 40 + "}", "seed"),
    (COMPLETIONS, '{"prompt": "x", "seed": 1' + "0" * 5000 + "}", "body"),
    (COMPLETIONS, '{"prompt": "x", "max_tokens": 1e30}', "max_tokens"),
    (COMPLETIONS, '{"prompt": "x", "max_tokens": -1}', "max_tokens"),
    (COMPLETIONS, '{"prompt": "x", "max_tokens": 0}', "max_tokens"),
    (COMPLETIONS, '{"prompt": "x", "max_tokens": 1.5}', "max_tokens"),
    (COMPLETIONS, '{"prompt": "x", "n": 9223372036854775808}', "n"),
    (COMPLETIONS, '{"prompt": "x", "top_k": -2}', "top_k"),
    (COMPLETIONS, '{"prompt": "x", "stop": [null]}', "stop"),
    (COMPLETIONS, '{"prompt": "x", "stop": {"a": 1}}', "stop"),
    (COMPLETIONS, '{"prompt": "x", "stream_options": "all"}', "stream_options"),
    (COMPLETIONS, '{"prompt": "x", "guided_json": {"minimum": NaN}}', "guided_json"),
    (COMPLETIONS, '{"prompt": "x", "guided_json": ' + nested(150) + "}", "guided_json"),
    (COMPLETIONS, '{"prompt": "x", "guided_json": "' + "[" * 5000 + '"}', "guided_json"),
    (COMPLETIONS, '{"prompt": "x", "guided_regex": "' + "(" * 5000 + '"}', "guided_regex"),
    (COMPLETIONS, '{"prompt": "x", "guided_grammar": "start: nothing"}', "guided_grammar"),
    (COMPLETIONS, '{"prompt": "x", "response_format": {"type": "xml"}}', "response_format"),
    (COMPLETIONS, '{"prompt": "x", "response_format": {"type": "json_object", "json_schema": {}}}',
     "response_format.json_schema"),
    (COMPLETIONS, '{"prompt": "x", "response_format": {"type": "json_object", "shape": 1}}', "response_format.shape"),
    (COMPLETIONS, '{"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "a"}, "schema": '
     '{"type": "array"}}}', "response_format.schema"),
    (COMPLETIONS, '{"prompt": "x", "structured_outputs": {"structural_tag": "a"}}',
     "structured_outputs.structural_tag"),
    (COMPLETIONS, '{"prompt": null}', "prompt"),
    (COMPLETIONS, '{"prompt": {}}', "prompt"),
    (COMPLETIONS, '{"prompt": []}', "prompt"),
    (COMPLETIONS, '{"prompt": [[]]}', "prompt"),
    (COMPLETIONS, '{"prompt": [true]}', "prompt"),
    (COMPLETIONS, '{"prompt": [-1]}', "prompt"),
    (COMPLETIONS, '{"prompt": [1, "a"]}', "prompt"),
    (COMPLETIONS, '{"prompt": [1' + "0" * 40 + "]}", "prompt"),
    (COMPLETIONS, '{"prompt": "x", "cache_salt": 5}', "cache_salt"),
    (COMPLETIONS, '{"prompt": "x", "request_id": "a\\nb"}', "request_id"),
    (COMPLETIONS, '{"prompt": "x", "model": "' + "m" * 100_000 + '"}', "model"),
    (COMPLETIONS, '{"prompt": "\\ud800"}', "body"),
    (COMPLETIONS, '{"prompt": "x"', "body"),
    (COMPLETIONS, '{"prompt": "x"} {}', "body"),
    (COMPLETIONS, "[]", "body"),
    (COMPLETIONS, '"x"', "body"),
    (COMPLETIONS, "null", "body"),
    (COMPLETIONS, "prompt=x&max_tokens=1", "body"),
    (COMPLETIONS, "[" * 30_000, "body"),
    (COMPLETIONS, nested(30_000), "body"),
    (CHAT, '{"messages": [' + USER + '], "max_tokens": 1, "tool_choice": "auto"}', None),
    (CHAT, '{"messages": [{"role": "assistant", "content": null, "refusal": "No."}], "max_tokens": 1}', None),
    (CHAT, '{"messages": [' + USER + '], "chat_template_kwargs": {"y": [], "x": NaN}, "max_tokens": 1}', None),
    (CHAT, '{"messages": [' + USER + ', {"role": "assistant", "content": "It is"}], "continue_final_message": true, '
     '"add_generation_prompt": null, "max_tokens": 1}', None),
    (CHAT, '{"messages": "x"}', "messages"),
    (CHAT, '{"messages": [1]}', "messages"),
    (CHAT, '{"messages": {}}', "messages"),
    (CHAT, '{"messages": [{"role": 1, "content": "x"}]}', "messages.0.role"),
    (CHAT, '{"messages": [{"content": "x"}]}', "messages.0.role"),
    (CHAT, '{"messages": [{"role": "user", "content": {"text": "x"}}]}', "messages.0.content"),
    (CHAT, '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
     "messages.0.content.0"),
    (CHAT, '{"messages": [{"role": "assistant", "content": "x", "tool_calls": "y"}]}', "messages.0.tool_calls"),
    (CHAT, '{"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}', "messages.0.function_call"),
    (CHAT, '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "messages.0.tool_calls.0.function.name"),
    (CHAT, '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]}',
     "messages.0.tool_calls.0.function.name"),
    (CHAT, '{"messages": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"role": "assistant", '
     '"content": [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "no"}]}], "max_tokens": 1}',
     None),
    (CHAT, '{"messages": [{"role": "user", "content": [{"type": "refusal", "text": "x"}]}]}', "messages.0.content.0"),
    (CHAT, '{"messages": [' + USER + '], "tools": [{"function": {"name": "f"}}], "tool_choice": {"function": {"name": '
     '"f"}}, "max_tokens": 1}', None),
    (CHAT, '{"messages": [' + USER + '], "tools": [{"type": null, "function": {"name": "f"}}]}', "tools"),
    (CHAT, '{"messages": [' + USER + '], "tools": {"a": 1}}', "tools"),
    (CHAT, '{"messages": [' + USER + '], "tools": [{"type": "function", "function": {"name": "f", "parameters": '
     '{"type": "object", "minProperties": NaN}}}], "tool_choice": "required"}', "tools.0.function.parameters"),
    (CHAT, '{"messages": [' + USER + '], "tool_choice": {"type": "function", "name": "f"}}', "tool_choice"),
    (CHAT, '{"messages": [' + USER + '], "top_logprobs": 5}', "top_logprobs"),
    (CHAT, '{"messages": [' + USER + '], "logprobs": 5}', "logprobs"),
    (CHAT, '{"messages": [' + USER + '], "reasoning_effort": 5}', "reasoning_effort"),
    ("/tokenize", '{"prompt": "x", "chat_template": "{{ 1 }}"}', "chat_template"),
    ("/tokenize", '{"prompt": "x", "messages": [' + USER + "]}", "prompt"),
    ("/detokenize", '{"tokens": [1, -1]}', "tokens"),
    ("/detokenize", '{"tokens": "1"}', "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), BODIES)
def test_odd_bodies(api: Api, path: str, body: str, param: str | None) -> None:
    content = body.encode("utf-8", "surrogatepass")
    answer = api.client.post(path, content=content, headers={"content-type": "application/json"})
    if param is None:
        assert answer.status_code == 200, answer.text
        return
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), error
    assert error["message"].startswith(param) and len(answer.content) < 5000, error
    assert error["param"] == (None if param == "body" else param), error


def test_bytes_that_are_no_text(api: Api) -> None:
    for content in (b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', '{"prompt": "x"}'.encode("utf-16"), b"\x00"):
        error = api.client.post(COMPLETIONS, content=content)
        assert (error.status_code, error.json()["error"]["code"]) == (400, "invalid_json")


def test_what_is_nested_too_deeply_is_no_other_fault(api: Api) -> None:
    def asked(levels: int) -> str:
        return '{"prompt": "x", "max_tokens": 1, "metadata": ' + '{"a":' * levels + "1" + "}" * levels + "}"

    assert api.client.post(COMPLETIONS, content=asked(DEEPEST - 1)).status_code == 200
    error = api.client.post(COMPLETIONS, content=asked(DEEPEST)).json()["error"]
    assert f"more than {DEEPEST} objects and lists" in error["message"] and error["code"] is None


def test_kinds_of_bodies(api: Api) -> None:
    """Compressed ones are refused by name; JSON is read whatever a client calls it, as `curl -d` does."""
    content = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    for encoding in ("gzip", "br", "GZIP", "gzip, identity"):
        refused = api.client.post(COMPLETIONS, content=gzip.compress(content), headers={"content-encoding": encoding})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (415, "content-encoding") and "as it is" in error["message"]
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", ""):
        headers = {"content-type": kind, "content-encoding": "identity"}
        assert api.client.post(COMPLETIONS, content=content, headers=headers).status_code == 200
    form = api.client.post(COMPLETIONS, files={"prompt": b"x"})
    assert (form.status_code, form.json()["error"]["code"]) == (400, "invalid_json")
    chunked = api.client.post(COMPLETIONS, content=iter([content[:5], content[5:]]))
    assert chunked.status_code == 200 and chunked.request.headers["transfer-encoding"] == "chunked"


def test_unknown_fields_of_the_small_endpoints_are_named(api: Api) -> None:
    asked = {"prompt": "x", "promt": 1, "reasoning_effort": "low"}
    assert api.client.post("/tokenize", json=asked).headers["x-semipd-unknown-fields"] == "promt"
    assert api.client.post("/detokenize", json={"tokens": [5], "x": 1}).headers["x-semipd-unknown-fields"] == "x"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *((method, COMPLETIONS, 405) for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "HEAD")),
        ("POST", "/v1/models", 405),
        ("POST", COMPLETIONS + "/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/%ff", 404),
        ("GET", "/v1/engines", 404),
        ("GET", "/v1/models?x=1&y", 200),
        ("GET", "/v1/%6dodels", 200),
    ],
)
def test_odd_paths_and_methods(api: Api, method: str, path: str, status: int) -> None:
    answer = api.client.request(method, httpx.URL(api.url).copy_with(raw_path=path.encode()))
    assert answer.status_code == status, answer.text
    if status == 405:
        assert answer.headers["allow"]
    if status != 200 and method != "HEAD":
        assert answer.json()["error"]["message"] and answer.json()["error"]["code"]


def test_false_asks_for_no_logprobs(api: Api) -> None:
    assert api.complete(logprobs=False, prompt_logprobs=False).json()["choices"][0]["logprobs"] is None
    assert api.complete(logprobs=0).json()["choices"][0]["logprobs"]["tokens"]


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions"])
def test_a_base_url_with_too_little_or_too_much_is_told_so(api: Api, path: str) -> None:
    assert "use /v1/chat/completions," in api.client.post(path, json={}).json()["error"]["message"]
    assert "see /docs" in api.client.get("/v1/nothing").json()["error"]["message"]


POST = b"POST /v1/completions HTTP/1.1\r\n"
BODY = b'{"prompt": "x", "max_tokens": 1}'
LENGTH = b"content-length: %d\r\n" % len(BODY)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/completions HTTP/1.0\r\n" + LENGTH + b"\r\n" + BODY, 200),
        (POST + LENGTH + b"\r\n" + BODY, 200),
        (POST + b"host: x\r\nexpect: 100-continue\r\n" + LENGTH + b"\r\n" + BODY, 200),
        (POST.replace(b"/v1", b"http://x/v1") + b"host: x\r\n" + LENGTH + b"\r\n" + BODY, 200),
        (
            POST
            + b"host: x\r\nUpgrade: h2c\r\nhttp2-settings: AA\r\nconnection: Upgrade, HTTP2-Settings\r\n"
            + LENGTH
            + b"\r\n"
            + BODY,
            200,
        ),
        (POST + b"host: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n" + LENGTH + b"\r\n" + BODY, 200),
        (POST + b"host: x\r\nauthorization: Bearer \xff\xfe\r\n" + LENGTH + b"\r\n" + BODY, 200),
        (POST + b"host: x\r\nx-request-timeout-ms: soon\r\n" + LENGTH + b"\r\n" + BODY, 400),
        (POST + b"host: x\r\n\r\n", 400),
        (POST + b"host: x\r\ncontent-length: 0\r\n\r\n", 400),
        (POST + b"host: x\r\n" + LENGTH + LENGTH + b"\r\n" + BODY, 400),
        (POST + b"host: x\r\n" + LENGTH + b"transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 400),
        (POST + b"host: x\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"NONSENSE /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    ],
)
def test_odd_requests(api: Api, sent: bytes, status: int) -> None:
    """Sent as bytes by a client that says no more; one answer, and the connection ends."""
    address = httpx.URL(api.url)
    with socket.create_connection((address.host, address.port or 80), timeout=PATIENCE_S) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b"")).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    body: Any = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["choices"] if status == 200 else body["error"]["message"]
    assert api.complete(max_tokens=1).status_code == 200


def test_a_body_that_is_too_large_need_not_be_sent(api: Api) -> None:
    """Its length says so: a client that waits for leave to send it is told at once."""
    address = httpx.URL(api.url)
    with socket.create_connection((address.host, address.port or 80), timeout=PATIENCE_S) as client:
        client.sendall(POST + b"host: x\r\ncontent-length: 1000000000000\r\nexpect: 100-continue\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
