"""One sequence on its way from core to the client: ids to text, stop strings, finish reason, times.

Pure: tokens in, `Delta`s out. Knows no sockets and no response shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.ipc.requests import RequestOutput
from semipd_engine.ipc.tokens import NO_LOGPROBS, Sampling, TokenLogprobs, unpack_logprobs
from semipd_engine.server.answer import AnswerOptions, AnswerParser
from semipd_engine.server.calls import CallDelta
from semipd_engine.server.detokenizer import Detokenizer, StopStrings
from semipd_engine.server.tools import THINK


@dataclass
class Delta:
    """What is new for one choice. `token_ids` may run ahead of `text`, which waits for whole characters."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """With logprobs: where in the sequence's text each token begins. Pieces of one character share its offset."""
    finish_reason: str | None = None
    reasoning: str = ""
    """What the model thinks, which is no part of `text`."""
    calls: list[CallDelta] = field(default_factory=list)
    """Of tools; nor are these."""
    stop_reason: int | str | None = None
    """The stop string or requested stop id that ended the sequence; None for end-of-sequence and length."""

    def merge(self, later: Delta) -> None:
        self.text += later.text
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.offsets += later.offsets
        self.reasoning += later.reasoning
        self.calls += later.calls
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason


@dataclass(frozen=True)
class TextOptions:
    """How a sequence's text is made from its ids."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    eos_token_ids: frozenset[int] = frozenset()
    cache_salt: str = ""
    grammar: str = ""
    answer: AnswerOptions | None = None
    """What its text is read for; None: it is content."""
    score_each: bool = False
    """The prompt's log-probabilities are shown with each choice as it begins. Else the first one's are all choices'."""
    silent: bool = False
    """Nothing of the output is shown or counted: the request is about its prompt alone."""


class Sequence:
    """Counts and times are public for metrics and usage; times are CLOCK_MONOTONIC seconds."""

    def __init__(
        self, index: int, prompt: list[int], sampling: Sampling, options: TextOptions, tokenizer: Tokenizer
    ) -> None:
        self.index = index
        self.prompt_token_ids = prompt
        self.prompt_tokens = len(prompt)
        self.sampling = sampling
        self.output_tokens = 0
        self.cached_tokens = 0
        self.packed_logprobs = NO_LOGPROBS
        """Of the prompt's tokens from the second on, where asked for: `prompt_logprobs`, unpacked at the first look."""
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.finish_reason: str | None = None
        self._options = options
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer.text, tokenizer.byte_of)
        self._shown = 0
        """Characters of text that were given out, reasoning and calls included."""
        self._held = Delta(index)
        """Tokens whose text a stop string may cut off, with theirs."""
        self._stops = StopStrings(options.stop, options.include_stop)
        self._answer = (
            AnswerParser(options.answer, self._thinks(options.answer)) if options.answer is not None else None
        )

    @cached_property
    def prompt_logprobs(self) -> list[TokenLogprobs]:
        return unpack_logprobs(self.packed_logprobs)

    @property
    def prompt_text(self) -> str:
        return self._tokenizer.decode(self.prompt_token_ids, self._options.skip_special_tokens)

    def prompt_offsets(self, text: str, literal: bool, special: bool) -> list[int]:
        """Where in `text`, the prompt's, each of its tokens begins. `literal`: it is what was tokenised, with special
        tokens written out, and where `special` is true with those that the tokenizer puts around a text. These have no
        place in it, nor has the blank of a first word."""
        skip = self._options.skip_special_tokens and not literal
        before, behind = self._tokenizer.affixes if literal and special else (0, 0)
        own = range(before, len(self.prompt_token_ids) - behind)
        detokenizer, offsets = Detokenizer(self._tokenizer.text, self._tokenizer.byte_of), []
        for at, token_id in enumerate(self.prompt_token_ids):
            kept = [token_id] if at in own and self._tokenizer.keeps(token_id, skip) else []
            offsets.append(detokenizer.push_one(kept)[1])
        detokenizer.flush()
        surplus = max(0, detokenizer.given - len(text))
        return [max(0, offset - surplus) for offset in offsets]

    def push(self, output: RequestOutput) -> Delta:
        """Take core's new tokens. After a stop string `finish_reason` is set here although core goes on: abort it."""
        if output.first_token_at is not None:
            self.first_token_at = output.first_token_at
            self.scheduled_at = output.scheduled_at
            self.cached_tokens = output.cached_tokens
            self.packed_logprobs = output.prompt_logprobs
        delta = Delta(self.index)
        if self._options.silent:
            self.finish_reason = delta.finish_reason = "length"
            return delta
        ids = output.token_ids
        stop_id = ids[-1] if output.finish_reason == "stop" and ids and self._is_stop_id(ids[-1]) else None
        visible = len(ids) - (stop_id is not None and not self._options.include_stop)
        if not self._options.stop and not output.logprobs:
            delta.token_ids = ids
            self.output_tokens += len(ids)
            delta.text = self._stops.push(self._detokenizer.push(self._kept(ids[:visible])))
        else:  # the token that completes a stop string matters, and where each token begins
            for i, token_id in enumerate(ids):
                delta.token_ids.append(token_id)
                self.output_tokens += 1
                text, offset = self._detokenizer.push_one(self._kept(ids[i : min(i + 1, visible)]))
                delta.text += self._stops.push(text, check=self.output_tokens > self.sampling.min_tokens)
                delta.offsets.append(offset)
                if self._stops.matched is not None:
                    break
            delta.logprobs = output.logprobs[: len(delta.token_ids)]
        if self._stops.matched is not None:
            delta.finish_reason, delta.stop_reason = "stop", self._stops.matched
        elif output.finish_reason is not None:
            delta.finish_reason = output.finish_reason
            self._flush(delta)
            if self._stops.matched is not None:
                delta.finish_reason, delta.stop_reason = "stop", self._stops.matched
            elif stop_id is not None and stop_id not in self._options.eos_token_ids:
                delta.stop_reason = stop_id
        self._shown += len(delta.text)
        if self._answer is not None:
            self._read(self._answer, delta)
        if delta.offsets or self._held.offsets:
            self._place(delta)
        self.finish_reason = delta.finish_reason
        if self._answer is not None and delta.finish_reason == "stop":
            delta.finish_reason = self._answer.finish_reason
        return delta

    def _place(self, delta: Delta) -> None:
        """Tokens with log-probabilities are given out no sooner than it is known where their text begins: what a stop
        string may take waits for it, and what it took has its place at the end."""
        ids, logprobs, offsets = (
            self._held.token_ids + delta.token_ids,
            self._held.logprobs + delta.logprobs,
            self._held.offsets + delta.offsets,
        )
        kept = len(ids)
        if delta.finish_reason is not None:
            offsets = [min(offset, self._shown) for offset in offsets]
        elif self._stops.holds:
            kept = sum(offset < self._shown for offset in offsets)
        delta.token_ids, delta.logprobs, delta.offsets = ids[:kept], logprobs[:kept], offsets[:kept]
        self._held = Delta(self.index, token_ids=ids[kept:], logprobs=logprobs[kept:], offsets=offsets[kept:])

    def _read(self, answer: AnswerParser, delta: Delta) -> None:
        """Tell reasoning and calls from content. After the last call that may be, it ends as at a stop string."""
        parts = [answer.push(delta.text)]
        if answer.ended and delta.finish_reason is None:
            delta.finish_reason = "stop"
        if delta.finish_reason is not None:
            parts.append(answer.flush())
        delta.text = "".join(part.content for part in parts)
        delta.reasoning = "".join(part.reasoning for part in parts)
        delta.calls = [call for part in parts for call in part.calls]

    def _thinks(self, answer: AnswerOptions) -> bool:
        """Does the prompt end within a thought?"""
        return answer.thinking or self._tokenizer.decode(self.prompt_token_ids[-8:]).rstrip().endswith(THINK)

    def _kept(self, token_ids: list[int]) -> list[int]:
        skip, answer = self._options.skip_special_tokens, self._options.answer
        markers = answer.markers if answer is not None else ()
        return [one for one in token_ids if self._tokenizer.keeps(one, skip) or one in markers]

    def _is_stop_id(self, token_id: int) -> bool:
        return token_id in self.sampling.stop_token_ids

    def _flush(self, delta: Delta) -> None:
        delta.text += self._stops.push(self._detokenizer.flush())
        if self._stops.matched is None:
            delta.text += self._stops.flush()
