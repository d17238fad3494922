"""The parts of the check, in the order in which they run: what each claims, and how long it may take.

What is worth most comes first, and what kills comes last: a client of MPS that is killed with kernels in flight may
take the GPU with it. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    name: str
    claim: str
    limit: float
    """Seconds after which it is ended."""
    least: float
    """Seconds without which it is not begun."""
    dry: bool = True
    """Has it a dry run on the CPU? What `exact-*` does is the beginning of `kills`."""
    kills: bool = False


SAME_TOKENS = "float32 tokens equal transformers', through two phase processes"
PREDICTED = "weights made on the device; memory, and the steps that were predicted, at their sizes"
PARTS = (
    Part("probe", "what this machine and its driver allow", 230, 60, dry=False),
    Part("machine", "what is here; without a GPU, that the packages load", 120, 10),
    Part("mps", "a daemon of our own limits its clients, and a variable that we inherited does not stop it", 120, 20),
    Part("memory", "another process maps the resident's memory, and no copy of it", 90, 15, dry=False),
    Part("exact-qwen2", SAME_TOKENS, 120, 25, dry=False),
    Part("kernels", "our kernels are their twins on this card, and read as fast as a copy", 90, 15),
    Part("rungs", "a rung has its SMs, in torch as in the probe, right products, and the rate follows", 120, 25),
    Part(
        "green",
        "rungs as green contexts: their SMs, no SM of both phases, right products, and a move is a stream",
        110,
        15,
        dry=False,
    ),
    Part("switches", "weights and KV pool are there once; a switch under load costs no worker and no token", 150, 45),
    Part("large-8B", PREDICTED, 110, 35),
    Part("large-1B", PREDICTED, 60, 25, dry=False),
    Part("graphs-exact", "decode steps as captured programs: " + SAME_TOKENS, 90, 25, dry=False),
    Part("graphs-8B", "decode steps as captured programs: " + PREDICTED, 110, 35, dry=False),
    Part("shares", "a token's time beside prompts, by prefill's share", 90, 35),
    Part(
        "goodput",
        "one trace of prompts and answers in turns: Auto beside one process, no limits, fixed splits",
        230,
        50,
    ),
    Part("exact-llama", SAME_TOKENS, 90, 25, dry=False),
    Part("exact-deepseek_v2", SAME_TOKENS, 90, 25, dry=False),
    Part("exact-qwen3_moe", SAME_TOKENS, 90, 25, dry=False),
    Part("exact-qwen3", SAME_TOKENS, 90, 25, dry=False),
    Part("exact-smollm2", SAME_TOKENS, 90, 25),
    Part("large-DeepSeek-V2-Lite", PREDICTED, 110, 35, dry=False),
    Part("kills", "kill -9 of each worker, and an end by MPS, cost no token", 120, 40, kills=True),
    Part("probe-kill", "what a killed owner and a killed client leave behind", 60, 30, dry=False, kills=True),
)
PROBE = {"probe": "env,mps,ipc,green,green2,nomps,kernels,nvml,transcripts", "probe-kill": "kill"}
"""Parts that are calls of a program from elsewhere, and the sections that they ask it for."""
PROBE_SLACK = 20.0
"""Seconds by which such a program's own budget ends before its limit."""
LEAVE_SECONDS = 15.0
"""For a part that is out of time to end its engine and its daemon, before it is killed."""
RESERVED = 60.0
"""Seconds that are kept for the kills."""


def named(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)


def allowance(part: Part, left: float, patience: float = 1.0) -> float:
    """Seconds that a part may have of the `left` ones; 0: it is not begun, for they are too few for it."""
    mine = left - LEAVE_SECONDS - (0.0 if part.kills else RESERVED * patience)
    return 0.0 if mine < part.least * patience else min(part.limit * patience, mine)
