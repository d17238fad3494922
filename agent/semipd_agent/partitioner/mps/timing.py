"""How long MPS may take for what, in seconds. One place, so that tests can be quick; the values are the watchdogs'."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    command: float = 5.0
    """One run of the control program."""
    answer: float = 10.0
    """From the daemon's start to its first answer."""
    server: float = 60.0
    """From asking for a server to ACTIVE. Without a persistence daemon the driver is initialised first."""
    first_probe: float = 60.0
    """The first client waits for the driver, too; one of another user than the server's would wait for ever."""
    probe: float = 15.0
    end: float = 5.0
    """From asking a daemon to end, or SIGTERM, to the next harder means."""
    check: float = 2.0
    """Between two looks at the daemon in force."""
    initializing: float = 15.0
    """A server that does not come back to ACTIVE in this time is lost."""
    longest_delay: float = 30.0
    """Between two starts, after losses in a row."""
    healthy: float = 300.0
    """A daemon that lived this long starts the count of losses anew."""
    retired: float = 120.0
    """Longest time that an old server stays for clients that do not move, once its successor is in force."""
