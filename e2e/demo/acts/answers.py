"""The chat question, and the engine's greedy token ids against those of `transformers`."""

from __future__ import annotations

from rich.markup import escape

from bench.traffic.plan import Request, ask
from bench.traffic.records import Record
from e2e.demo.outcome import DemoError, Outcome
from e2e.demo.reference import QUESTION, Case
from e2e.demo.service import Send


def question(outcome: Outcome, send: Send, where: str) -> Record:
    """Asks and prints; PASS if the answer names Paris and the model stopped by itself."""
    record = send([ask(QUESTION)])[0]
    if not record.ok:
        raise DemoError(f"no answer {where}: {record.error}")
    answer = record.text.strip()
    outcome.console.print(f"  [bold]{QUESTION}[/]\n  {escape(answer)}\n")
    outcome.transcript.append((f"{QUESTION} ({where})", answer))
    ttft = f"first token after {(record.ttft or 0) * 1000:.0f} ms"
    outcome.check(f"the model answers, {where}", "Paris" in answer and record.finish_reason == "stop", ttft)
    return record


def greedy(outcome: Outcome, send: Send, cases: list[Case], where: str) -> None:
    """All prompts at once, streaming: batching must not change a token."""
    plan = [
        ask(case.name, max_tokens=len(case.expected))
        if case.chat
        else Request(0.0, len(case.expected), case.prompt, label=case.name)
        for case in cases
    ]
    differences = [
        difference
        for case, record in zip(cases, send(plan), strict=True)
        if (difference := compare(case, record)) is not None
    ]
    tokens = sum(len(case.expected) for case in cases)
    outcome.check(
        f"greedy tokens equal those of transformers, {where}",
        not differences,
        "; ".join(differences) or f"{len(cases)} prompts, {tokens} tokens, float32",
    )


def compare(case: Case, record: Record) -> str | None:
    """How the record differs from the case; None: not at all.

    The engine may or may not report the end-of-sequence id that ended a chat answer: both are right.
    """
    if not record.ok:
        return f"{case.name}: {record.error or 'the stream was cut'}"
    expected, got = case.expected, record.token_ids
    if case.chat and record.finish_reason == "stop" and got == expected[:-1]:
        return None
    if got == expected:
        return None
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    return f"{case.name}: token {at} differs ({len(got)} tokens, {len(expected)} expected)"
