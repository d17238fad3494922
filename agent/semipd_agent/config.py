"""The mounted configuration file, watched by content. Knows no HTTP and no meaning of the settings.

Kubernetes updates a mounted ConfigMap by swapping a symlink, so neither inotify on the file nor its inode is reliable;
the file is small, and read once a second.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from semipd_agent.contract import AgentFile

log = logging.getLogger(__name__)


class ConfigFileError(Exception):
    """The file cannot be read or is not an `AgentFile`; the message names the file and the field."""


class ConfigFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self._complaint = ""

    def load(self) -> AgentFile:
        """Read the file. Raises `ConfigFileError`."""
        content = self._read()
        parsed = self._parse(content)
        self._content = content
        return parsed

    def changed(self) -> AgentFile | None:
        """The file, if its content changed since it was last read well. An unreadable file changes nothing."""
        try:
            content = self._read()
            if content == self._content:
                return None
            parsed = self._parse(content)
        except ConfigFileError as e:
            if str(e) != self._complaint:
                log.error("%s; the configuration in force stays", e)
            self._complaint = str(e)
            return None
        self._content, self._complaint = content, ""
        return parsed

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as e:
            raise ConfigFileError(f"{self._path}: {e.strerror}") from e

    def _parse(self, content: bytes) -> AgentFile:
        try:
            return AgentFile.model_validate_json(content)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise ConfigFileError(f"{self._path}: {where}: {first['msg']}") from e
