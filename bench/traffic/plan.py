"""What to send and when, fixed before the first request leaves. Pure: knows no network and no clock.

Arrivals are Poisson, Gamma or replayed from a trace; prompts are random token ids (nothing for a prefix cache to find)
or text cut to a token count. `bench/traces/` holds the traces.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

MOST_REQUESTS = 1_000_000
TRACES = Path(__file__).resolve().parents[1] / "traces"


class PlanError(ValueError):
    """No plan can be made of this file or these figures; the message names them."""


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class Request:
    """One request: `prompt` (text or token ids) goes to /v1/completions, `messages` to /v1/chat/completions."""

    at: float
    """Seconds after the start of the replay."""
    max_tokens: int
    prompt: str | tuple[int, ...] = ()
    messages: tuple[dict[str, str], ...] = ()
    label: str = ""
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int | None = None
    hang_up: float | None = None
    """Seconds after its planned time at which the client closes the stream, whatever came; None: never."""
    after: int | None = None
    """Index in the plan of an earlier one that must have ended first; that is the planned time, if later than `at`."""
    not_after: float | None = None
    """It is left out if its planned time comes to be later than that."""
    outlasts: int | None = None
    """Index in the plan of another one: the client closes this one's stream soon after that one has ended
    (`client.LINGER_SECONDS`), if it is not closed before; None: none."""

    def __post_init__(self) -> None:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("a request needs either a prompt or messages")
        if self.max_tokens < 1 or self.at < 0:
            raise ValueError(f"max_tokens must be at least 1 and at not negative: {self.max_tokens}, {self.at}")
        if self.hang_up is not None and not 0 < self.hang_up < math.inf:
            raise ValueError(f"hang_up must be a number of seconds above 0: {self.hang_up}")
        if self.not_after is not None and not self.at <= self.not_after < math.inf:
            raise ValueError(f"not_after must not be before at, or the request is never sent: {self.not_after}")
        if self.after is not None and self.after < 0:
            raise ValueError(f"after must be the index of an earlier request: {self.after}")
        if self.outlasts is not None and self.outlasts < 0:
            raise ValueError(f"outlasts must be the index of another request: {self.outlasts}")


def ask(question: str, *, at: float = 0.0, max_tokens: int = 64) -> Request:
    """A chat question, ended by the model itself."""
    return Request(at, max_tokens, messages=({"role": "user", "content": question},), ignore_eos=False)


PROMPT_VOCABULARY = range(1_000, 9_000)
"""Token ids that are ordinary words in most tokenizers, and no special token."""


def prompt_ids(tokens: int, *, seed: int, vocabulary: range = PROMPT_VOCABULARY) -> tuple[int, ...]:
    """Random token ids."""
    return tuple(random.Random(seed).choices(vocabulary, k=tokens))


class Encoder(Protocol):
    """The two calls of a tokenizer that a text prompt needs (`tokenizers.Tokenizer` behind a thin wrapper has them)."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


def prompt_text(tokens: int, encoder: Encoder, *, seed: int, words: Iterable[str] = ()) -> str:
    """Text of exactly `tokens` tokens: random words, cut, and re-encoded until the count is right.

    Raises ValueError if the tokenizer has no such text (a cut may merge with its neighbour; a few seeds are tried).
    """
    choices = list(words) or _WORDS
    for attempt in range(20):
        picker = random.Random(f"{seed}/{attempt}")
        text = " ".join(picker.choices(choices, k=tokens + 1))
        text = encoder.decode(encoder.encode(text)[:tokens])
        if len(encoder.encode(text)) == tokens:
            return text
    raise ValueError(f"no text of exactly {tokens} tokens found")


_TEXT = (
    "the river runs along a quiet road and every morning people walk to work under tall green trees while small birds "
    "sing about food water light home music time stone wind paper glass north south winter summer"
)
_WORDS = _TEXT.split()


def poisson(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Arrival times of a Poisson process of `rate` per second, within [0, seconds). Raises `PlanError`."""
    _check(rate, seconds)
    source, at = random.Random(seed), 0.0
    while (at := at + source.expovariate(rate)) < seconds:
        yield at


def gamma(rate: float, seconds: float, *, variation: float, seed: int) -> Iterator[float]:
    """Arrival times within [0, seconds) whose distances are Gamma-distributed with a mean of `rate` per second.

    `variation` is the distances' coefficient of variation: 1 is a Poisson process, above it requests come in bursts."""
    shape = variation**-2
    source, at = random.Random(seed), 0.0
    while (at := at + source.gammavariate(shape, 1 / (rate * shape))) < seconds:
        yield at


def mixed_plan(
    arrivals: Iterable[float], *, prompt_tokens: tuple[int, int], max_tokens: tuple[int, int], seed: int
) -> list[Request]:
    """A request at each arrival, its lengths uniform within the bounds, both included."""
    source = random.Random(seed)
    return [
        Request(
            at, source.randint(*max_tokens), prompt_ids(source.randint(*prompt_tokens), seed=seed * 100_003 + number)
        )
        for number, at in enumerate(arrivals)
    ]


def poisson_plan(
    rate: float, seconds: float, *, prompt_tokens: int, max_tokens: int, seed: int, label: str = "", start: float = 0.0
) -> list[Request]:
    """Poisson arrivals of equal requests with different prompts."""
    return [
        Request(start + at, max_tokens, prompt_ids(prompt_tokens, seed=seed * 100_003 + number), label=label)
        for number, at in enumerate(poisson(rate, seconds, seed=seed))
    ]


@dataclass(frozen=True)
class TraceRow:
    at: float
    input_tokens: int
    output_tokens: int


def read_trace(path: Path) -> list[TraceRow]:
    """Rows of a csv.gz with the columns t_s, input_tokens, output_tokens, in the order of time. Raises `PlanError`."""
    rows: list[TraceRow] = []
    try:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                one = TraceRow(float(row["t_s"]), int(row["input_tokens"]), int(row["output_tokens"]))
                if not (rows[-1].at if rows else -math.inf) <= one.at < math.inf:
                    raise ValueError(f"t_s {row['t_s']} is no time, or before the one above it")
                rows.append(one)
    except (OSError, EOFError, zlib.error) as error:
        raise PlanError(f"{path}: {getattr(error, 'strerror', None) or error}; name a trace (csv.gz)") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        where = f"{path}: row {len(rows) + 1}: "
        raise PlanError(f"{where}{error}; it needs numbers under t_s, input_tokens and output_tokens") from None
    if not rows:
        raise PlanError(f"{path}: has no rows; name a trace with at least one")
    return rows


def trace_plan(
    rows: Iterable[TraceRow],
    *,
    rate: float,
    seconds: float,
    length_scale: float = 1.0,
    max_prompt: int = 1_024,
    max_output: int = 256,
    seed: int = 0,
    label: str = "",
    start: float = 0.0,
) -> list[Request]:
    """A stretch of a trace, its time scaled to a mean of `rate` requests per second over `seconds`.

    Bursts and the joint lengths stay as recorded; lengths are multiplied by `length_scale` and capped. `seed` picks
    where in the trace the stretch starts. Raises `PlanError`.
    """
    table = list(rows)
    _check(rate, seconds)
    if not table:
        raise PlanError("the trace has no rows")
    wanted = min(len(table), max(1, round(rate * seconds)))
    first = random.Random(seed).randrange(len(table) - wanted + 1)
    stretch = table[first : first + wanted]
    length = max(stretch[-1].at - stretch[0].at, 1e-9)
    factor = seconds * (wanted - 1) / wanted / length if wanted > 1 else 0.0
    return [
        Request(
            at=start + (row.at - stretch[0].at) * factor,
            prompt=prompt_ids(_scaled(row.input_tokens, length_scale, max_prompt), seed=seed * 100_003 + number),
            max_tokens=_scaled(row.output_tokens, length_scale, max_output),
            label=label,
        )
        for number, row in enumerate(stretch)
    ]


def _check(rate: float, seconds: float) -> None:
    if not (0 < rate < math.inf and 0 < seconds < math.inf and rate * seconds <= MOST_REQUESTS):
        what = f"rate {rate:g} for {seconds:g} seconds"
        raise PlanError(f"{what}: both must be more than 0, and give at most {MOST_REQUESTS:,} requests")


def _scaled(tokens: int, scale: float, most: int) -> int:
    return max(1, round(min(most, tokens * scale)))


def check(plan: Sequence[Request]) -> None:
    """What one request alone does not show. Raises `PlanError`: a request that waits for itself, or for one behind it,
    might never be sent, and the replay never end."""
    for index, request in enumerate(plan):
        if request.after is not None and request.after >= index:
            raise PlanError(f"request {index}: after: {request.after}; it must be the index of an earlier request")
        if request.outlasts is not None and (request.outlasts == index or request.outlasts >= len(plan)):
            raise PlanError(f"request {index}: outlasts: {request.outlasts}; it must be the index of another request")


def write(plan: Iterable[Request], path: Path) -> None:
    """JSON Lines, one request a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(request)) + "\n" for request in plan))


def read(path: Path) -> list[Request]:
    """The plan that `write` wrote. Raises `PlanError`."""
    parse, plan = TypeAdapter(Request), []
    try:
        for line in path.read_bytes().splitlines():
            plan.append(parse.validate_json(line))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}; name a plan (JSON Lines)") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{path}: line {len(plan) + 1}: {field + ': ' if field else ''}{first['msg']}") from None
    if not plan:
        raise PlanError(f"{path}: has no requests; write one a line")
    try:
        check(plan)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    return plan
