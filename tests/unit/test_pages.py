"""The pages name files that exist, and the runner of command blocks sees what a reader sees."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from e2e.lib.pages import Block, Change, PageError, Shell, blocks, difference, pictures

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Page

## One

<!-- until: two -->
```bash
echo one
```
```text
on…
```

```text
a picture
```

## Two

```bash
false
true
```
"""


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/operations.md", "docs/design/0001-rooms.md"])
def test_links_and_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    for link in links:
        assert ((ROOT / page).parent / link).exists(), f"{page} links {link}"
    for name in re.findall(r"`((?:engine|agent|operator|cli)/semipd_[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), f"{page} names {name}"


def test_blocks_with_their_notes_and_outputs() -> None:
    assert blocks(PAGE, "One") == [Block(7, "echo one\n", shows="on…\n", until="two")]
    assert [block.commands for block in blocks(PAGE)] == ["echo one\n", "false\ntrue\n"]
    with pytest.raises(PageError, match="not known"):
        blocks(PAGE.replace("until: two", "after a while"))
    assert pictures(PAGE) == ["a picture\n"]
    for other in ("", "sh", "console"):
        with pytest.raises(PageError, match="line 20: a block of"):
            blocks(PAGE.replace("```bash\nfalse", f"```{other}\nfalse"))


def test_an_output_is_compared_line_by_line() -> None:
    assert difference("…\na … c\nd", "x\na  b c\n\nd\n") is None
    assert difference("", "anything") is None, "nothing is said of it"
    assert difference("d\na", "d\nb\na\n") == "it did not print 'a' there"
    assert difference("d a\n", "d\na\n") == "it did not print 'd a' there", "a line is a line"
    assert difference("a", "a\r 10 % received\n") == "it printed more than the page shows"


@pytest.mark.parametrize(("reason", "tokens"), [("length", 4), ("length", 9), ("stop", 4)])
def test_the_shown_completion_has_the_length_that_was_asked_for(reason: str, tokens: int) -> None:
    page = blocks((ROOT / "docs" / "quickstart.md").read_text(), "On a cluster")
    [shown] = [block.shows for block in page if block.commands.startswith("curl")]
    choice = {"index": 0, "text": " Paris.\n\n", "logprobs": None, "finish_reason": reason, "stop_reason": None}
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    answer = {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage}
    said = difference(shown, json.dumps(answer, separators=(",", ":")))
    assert (said is None) == ((reason, tokens) == ("length", 4))


def test_any_command_of_a_block_may_fail_it(tmp_path: Path) -> None:
    with Shell(tmp_path, {}) as shell:
        assert shell.run(Block(1, "x=1\n"), 20) == "\n"
        assert shell.run(Block(1, "printf $x\n", shows="1"), 20).strip() == "1"
        with pytest.raises(PageError, match="did not print 'two'"):
            shell.run(Block(1, "echo one\n", shows="two"), 20)
        with pytest.raises(PageError, match="a command failed"):
            shell.run(blocks(PAGE, "Two")[0], 20)


def test_what_serves_runs_beside_the_next_block_and_is_ended(tmp_path: Path) -> None:
    with Shell(tmp_path, {}) as shell:
        shell.run(Block(1, "bash -c 'echo begun; sleep 300'\n", until="begun", serves=True), 20)
        assert shell.run(Block(2, "pgrep --parent $$ --count\n"), 20).strip() == "1"
    with pytest.raises(PageError, match="does not say"), Shell(tmp_path, {}) as shell:
        shell.run(Block(1, "echo other\n", until="begun", serves=True), 20)


QUESTION = {
    "model": "smollm2-135m-instruct",
    "temperature": 0,
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
}
CHAT = "/v1/chat/completions"


@contextmanager
def listener(status: int = 200) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """(address, requests heard) of a server that answers whatever it is asked, or refuses it."""
    heard: list[tuple[str, str, Any]] = []
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"message": {}, "finish_reason": "stop"}]}
    answer["choices"][0]["message"] = {"content": "The capital of France is Paris."}  # type: ignore[index]

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard.append(
                (f"{self.command} {self.path}", self.headers.get("Content-Type", ""), body and json.loads(body))
            )
            metrics = "".join(
                f'semipd_partition_percent{{phase="{phase}",value="in_force"}} {percent}.0\n'
                for phase, percent in (("prefill", 80), ("decode", 50))
            )
            said = (json.dumps(answer, separators=(",", ":")) if self.command == "POST" else metrics).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = reply

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", heard
        server.shutdown()


def curls() -> list[Block]:
    page = (ROOT / "docs" / "quickstart.md").read_text()
    return [block for block in blocks(page, "Without Kubernetes") if block.commands.startswith("curl")]


def asked(block: Block, folder: Path, commands: str = "", status: int = 200) -> list[tuple[str, str, Any]]:
    """What a block asks for, with other commands if there are any. Raises `PageError`."""
    with listener(status) as (address, heard), Shell(folder, {}) as shell:
        commands = (commands or block.commands).replace("127.0.0.1:8000", address)
        shell.run(Block(block.line, commands, block.shows), 20)
    return heard


def changed(block: Block, flag: str, change: Change = Change.LEFT_OUT) -> str:
    [found] = [mutant.commands for mutant in block.mutants() if (mutant.flag, mutant.change) == (flag, change)]
    return found


def test_the_quick_start_asks_what_it_says(tmp_path: Path) -> None:
    question, metrics = curls()
    assert asked(question, tmp_path) == [(f"POST {CHAT}", "application/json", QUESTION)]
    assert [request for request, _, _ in asked(metrics, tmp_path)] == ["GET /metrics"]
    for change in (Change.LEFT_OUT, Change.ALTERED):
        [(_, kind, _)] = asked(question, tmp_path, changed(question, "--header", change))
        assert kind != "application/json"


@pytest.mark.parametrize("number", [0, 1])
def test_a_refused_request_fails_its_block_and_says_why(number: int, tmp_path: Path) -> None:
    """Not by what it prints alone: this is what `--fail-with-body` is there for. A script would go on."""
    block = replace(curls()[number], shows="")
    with pytest.raises(PageError, match=r"a command failed(?s:.*)curl: \(22\)"):
        asked(block, tmp_path, status=503)
    with pytest.raises(PageError, match="a command failed") as silent:
        asked(block, tmp_path, changed(block, "-S"), status=503)
    assert "curl: (22)" not in str(silent.value)
    asked(block, tmp_path, changed(block, "--fail-with-body"), status=503)


def test_a_file_that_is_not_changed_is_noticed_in_the_next_block(tmp_path: Path) -> None:
    page = blocks((ROOT / "docs" / "quickstart.md").read_text(), "Without Kubernetes")
    at = next(number for number, block in enumerate(page) if block.commands.startswith("sed"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with Shell(tmp_path, {}) as shell:
        shell.run(replace(page[at], commands=changed(page[at], "-i")), 20)
        with pytest.raises(PageError, match="prefillPercent: 80"):
            shell.run(page[at + 1], 20)
        shell.run(page[at], 20)
        shell.run(page[at + 1], 20)


COMMANDS = Block(1, "ls -aB --color=never --width 9 .\nsort <<<'b' \\\n  -o 'a b' # all\n", shows=".\n..\n")


def test_each_flag_is_renamed_and_left_out_and_each_value_altered() -> None:
    assert COMMANDS.split() == ["ls -aB --color=never --width 9 .\n", "sort <<<'b' \\\n  -o 'a b' # all\n"]
    sort = COMMANDS.split()[1]
    found = {(mutant.flag, mutant.change): mutant for mutant in COMMANDS.mutants()}
    assert len(found) == 4 + 4 + 3, "`-aB` may have a value; it has none here"
    assert found["--color", Change.RENAMED].commands == f"ls -aB --color-renamed=never --width 9 .\n{sort}"
    assert found["--color", Change.LEFT_OUT].commands == f"ls -aB  --width 9 .\n{sort}"
    assert found["--width", Change.ALTERED].commands == f"ls -aB --color=never --width 9-altered .\n{sort}"
    assert found["-o", Change.LEFT_OUT].commands == "sort <<<'b' \\\n   # all\n"
    assert found["-o", Change.ALTERED].commands == "sort <<<'b' \\\n  -o 'a b-altered' # all\n"
    assert found["--width", Change.LEFT_OUT].whole and not found["-o", Change.LEFT_OUT].whole


def test_a_flag_that_changes_nothing_survives(tmp_path: Path) -> None:
    one, two = "ls --all --color=never\n", "ls --color=never\n"
    with Shell(tmp_path, {}) as shell:
        found = shell.survivors(Block(1, one, shows=".\n..\n"), 20)
        assert [(mutant.flag, mutant.change) for mutant in found] == [("--color", Change.LEFT_OUT)]
        assert shell.survivors(Block(1, two), 20, unseen=["--color"]) == []
        assert shell.attempt("sleep 60", 0.5)[0] == 124
        assert shell.attempt("exit 3", 20)[0] == 3 and shell.attempt("echo on", 20)[1].strip() == "on"


@pytest.mark.parametrize(("machine", "folder"), [("AMX", "benchmarks"), ("AVX-512", "benchmarks/xeon")])
def test_the_readme_s_ratios_are_those_of_the_published_run(machine: str, folder: str) -> None:
    """The table beside other servers: a cell of README is the median in the last column of the machine's page."""
    page = (ROOT / "docs" / folder / "cpu.md").read_text()
    names = {"Llama, 0.5 B": "llama-0.5b", "SmolLM2-135M": "smollm2-135m"}
    parts = ("decode-128", "decode-2000", "eight", "prefill-512")
    for shown, model in names.items():
        name = re.escape(f"{shown}, {machine}")
        row = re.search(rf"^\| {name} \|(.+)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
        section = page.partition(f"## {model}\n")[2].partition("\n## ")[0]
        assert row and section
        for part, cell in zip(parts, row[1].split("|"), strict=True):
            ratio = re.search(rf"^\| {part}, .*\| ([\d.]+)†? \([^|]*\) \|$", section, re.MULTILINE)
            assert ratio and cell.strip(" *").removesuffix(" ×") == ratio[1], (model, part)
