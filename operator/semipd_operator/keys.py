"""The operator's keys: the one that tokens are made of, and those before it that pods may still go by.

A key may be replaced at any time. The pods learn of a new one with their mounted ConfigMap, a minute and a half later;
until then they are asked with the token that they know, so that nobody is out of sight meanwhile. It knows no token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from semipd_operator.settings import SettingsError, read_key

log = logging.getLogger(__name__)

REMEMBERED_SECONDS = 600.0
"""A key that was replaced while we ran is good for this long; then it is worth nothing to whoever has it."""


class KeyRing:
    def __init__(self, files: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        """`files`: of the current key, then of those before it, which need not exist. Raises `SettingsError`."""
        self._files, self._clock = files, clock
        self._written = self._read()
        self._replaced: dict[bytes, float] = {}
        self._complaint = ""
        self.keys = self._written
        """The current one first."""

    def reread(self) -> bool:
        """Whether `keys` changed. A file that cannot be read changes nothing."""
        written, complaint = self._written, ""
        try:
            written = self._read()
        except SettingsError as error:
            complaint = str(error)
        if complaint and complaint != self._complaint:  # read every few seconds, it is said once
            log.warning("the keys stay as they are: %s", complaint)
        self._complaint = complaint
        now = self._clock()
        if written[0] != self._written[0]:
            self._replaced[self._written[0]] = now + REMEMBERED_SECONDS
        self._written = written
        self._replaced = {key: end for key, end in self._replaced.items() if end > now}
        before, self.keys = self.keys, tuple(dict.fromkeys((*written, *self._replaced)))
        return before != self.keys

    def _read(self) -> tuple[bytes, ...]:
        current, *earlier = self._files
        return (read_key(current), *(read_key(file) for file in earlier if file.exists()))
