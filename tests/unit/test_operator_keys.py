"""Keys that are replaced while the operator runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.unit.operator_rendered import SETTINGS, make

from semipd_agent.contract import token_digest
from semipd_operator.keys import REMEMBERED_SECONDS, KeyRing
from semipd_operator.render.configmap import agent_file
from semipd_operator.settings import SettingsError

pytestmark = pytest.mark.unit
OLD, NEW = b"0123456789abcdef", b"fedcba9876543210"


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_that_is_replaced_is_remembered_for_a_while(tmp_path: Path) -> None:
    file, clock = tmp_path / "key", Clock()
    file.write_bytes(OLD + b"\n")
    ring = KeyRing((file, tmp_path / "previous-key"), clock)
    assert ring.keys == (OLD,) and not ring.reread()
    file.write_bytes(NEW)
    assert ring.reread() and ring.keys == (NEW, OLD)
    clock.now += REMEMBERED_SECONDS - 1
    assert not ring.reread()
    clock.now += 2
    assert ring.reread() and ring.keys == (NEW,), "then it is worth nothing to whoever has it"


def test_the_key_before_may_be_written_beside_the_new_one(tmp_path: Path) -> None:
    files = tmp_path / "key", tmp_path / "previous-key"
    for file, key in zip(files, (NEW, OLD), strict=True):
        file.write_bytes(key)
    ring = KeyRing(files)
    assert ring.keys == (NEW, OLD)
    files[1].unlink()
    assert ring.reread() and ring.keys == (NEW,)


def test_a_key_that_cannot_be_read_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_bytes(OLD)
    ring = KeyRing((file,))
    file.write_bytes(b"short")
    for _ in range(3):
        assert not ring.reread() and ring.keys == (OLD,)
    assert caplog.text.count("at least 16") == 1
    file.write_bytes(OLD)
    ring.reread()
    file.unlink()
    assert not ring.reread() and caplog.text.count("the keys stay as they are") == 2, "another fault, another word"
    file.write_bytes(b"short")
    with pytest.raises(SettingsError, match="at least 16"):
        KeyRing((file,))


def test_while_a_key_is_replaced_the_pods_accept_both_tokens() -> None:
    both = replace(SETTINGS, key=NEW, earlier_keys=(OLD,))
    tokens = both.tokens("team", "demo", "uid-1")
    accepted = agent_file(make({}), both).token_sha256
    assert accepted == tuple(token_digest(token) for token in tokens) and len(set(tokens)) == 2
    assert agent_file(make({}), replace(both, earlier_keys=())).token_sha256 == accepted[:1]
    assert agent_file(make({}), replace(both, key=b"")).token_sha256 == (), "without a key the agents obey nobody"
