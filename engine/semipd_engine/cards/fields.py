"""Typed access to a model folder's JSON files, with errors that name file and field."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from semipd_engine.cards.errors import ModelError

MOST = (1 << 31) - 1
"""What a size may be: positions and ids are int32."""
BROKEN = (OSError, ValueError, RecursionError)
"""How a JSON file fails that is not there, not readable, not JSON, or nested without an end."""


NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""How a path fails at whose end, or on whose way, nothing is."""


class Fields:
    """A null value counts as absent, as it does in transformers' configuration files."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def get(self, name: str, default: Any = None) -> Any:
        """`default` only where the field is absent: an explicit null stays None."""
        return self._values.get(name, default)

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self.error(name, "a string")
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
            raise self.error(name, f"an integer from 1 to {MOST}")
        return value

    def whole(self, name: str, default: int) -> int:
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise self.error(name, f"an integer from 0 to {MOST}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._values.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(name, "a number")
        return float(value)

    def not_negative(self, name: str, default: float) -> float:
        value = self.number(name, default)
        if value < 0:
            raise self.error(name, "a number from 0")
        return value

    def above_zero(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value <= 0:
            raise self.error(name, "a number above 0")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A number, a list of numbers, or nothing."""
        value = self._values.get(name)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in found):
            raise self.error(name, "an integer or a list of them")
        return tuple(found)

    def flag(self, name: str, default: bool = False, null: bool | None = None) -> bool:
        """`null`: what an explicit null means, where that is not the default."""
        value = self._values.get(name, default)
        if value is None:
            value = default if null is None else null
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def names(self) -> set[str]:
        """Of the fields that are not null."""
        return {name for name, value in self._values.items() if value is not None}

    def filled(self, **defaults: Any) -> Fields:
        """The same with a family's own defaults for fields that are absent; an explicit null stays one."""
        return Fields(defaults | self._values, self._source)

    def without(self, *names: str) -> Fields:
        """The same but for fields that somebody else has read."""
        return Fields({name: value for name, value in self._values.items() if name not in names}, self._source)

    def nested(self, name: str) -> Fields | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Fields(value, f"{self._source}: {name}")

    def refuse_unless(self, name: str, supported: object) -> None:
        value = self._values.get(name)
        if value is not None and value != supported:
            runs = "models without it" if supported is None else repr(supported)
            said = "an object" if isinstance(value, dict) else repr(value)
            raise ModelError("UnsupportedFeature", f"{self._source}: {name} is {said}; this engine runs {runs}")

    def error(self, name: str, expected: str) -> ModelError:
        """For a field whose value is not what was expected."""
        return ModelError("InvalidConfig", f"{self._source}: {name} is {self._values.get(name)!r}; expected {expected}")


def there(path: Path) -> bool:
    """Whether the folder has an entry of the name; a link that leads nowhere is one."""
    return os.path.lexists(path)


def denied(path: Path) -> str:
    """Why this process may not read `path`, at the first folder on the way that keeps it out, and the remedy; empty
    where it may, or where there is nothing."""
    path = Path(os.path.realpath(path))
    for place in (*reversed(path.parents), path):
        try:
            status = place.stat()
        except OSError:
            return ""
        folder = place.is_dir()
        if not os.access(place, os.X_OK if folder else os.R_OK, effective_ids=True):
            groups = sorted({os.getegid(), *os.getgroups()})
            who = f"user {os.geteuid()}, groups {' '.join(map(str, groups))}"
            whose = f"mode {status.st_mode & 0o7777:04o}, of user {status.st_uid} and group {status.st_gid}"
            return f"{place} may not be {'entered' if folder else 'read'} by {who} ({whose}): chmod or chown it"
    return ""


def no_file(path: Path) -> str:
    """Why what stands at `path` is not the file that it should be, and the remedy; empty where the content is at
    fault, or nothing stands there. Programs that read it say of the commonest of these only that they were surprised.
    """
    if why := denied(path):
        return why
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which is not there: copy or mount what the links lead to, too"
    if not path.exists():
        return ""
    if not path.is_file():
        return f"{path} is no file; copy or fetch the model again"
    try:
        with path.open("rb") as file:
            begin = file.read(len(_LFS_POINTER))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if begin == _LFS_POINTER:
        return f"{path} is a Git LFS pointer and not the file that it stands for: git lfs pull in the model's folder"
    return "" if begin else f"{path} is empty; copy or fetch it again"


_LFS_POINTER = b"version https://git-lfs."


def not_json(path: Path, error: Exception) -> str:
    """For a JSON file that failed with one of `BROKEN`."""
    if isinstance(error, OSError):
        return no_file(path) or f"{path} cannot be read: {error.strerror}"
    return no_file(path) or f"{path} is not JSON: {error}; copy or fetch it again"


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises `ModelError`: NotFound, NotReadable, InvalidConfig."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno in NOT_THERE:
            missing = f"{path} does not exist; a Hugging Face model directory has {path.name}"
            raise ModelError("NotFound", no_file(path) or missing) from None
        if why := denied(path):
            raise ModelError("NotReadable", why) from error
        raise ModelError("InvalidConfig", not_json(path, error)) from error
    if not isinstance(value, dict):
        raise ModelError("InvalidConfig", f"{path}: expected a JSON object")
    return value
