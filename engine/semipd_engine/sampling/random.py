"""Random numbers without state: a hash of (seed, index). Any process draws the same one, in any order."""

from __future__ import annotations

import hashlib


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits; independent for different pairs (seed, index)."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
