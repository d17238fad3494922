"""The pages name files that exist, and the runner of command blocks sees what a reader sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from e2e.lib.pages import Block, PageError, Shell, blocks, missing

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

```
no language
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


def test_an_output_is_compared_line_by_line() -> None:
    assert missing("a … c\nd", "x\na  b c\nd\n") is None
    assert missing("d\na", "a\nd\n") == "a"


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
