"""The api process without its routes: admission, what an answer must be, requests to core. Knows no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from starlette.types import Receive

from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.cards.model_card import load_model_card
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.contract import EngineOptions, ReasoningParser, ToolParser
from semipd_engine.ipc.requests import CoreState, Outputs, Rejected
from semipd_engine.server.admission import OUTAGE_GRACE_SECONDS, Admission
from semipd_engine.server.answer import MARKERS, AnswerOptions
from semipd_engine.server.bodies import Bodies
from semipd_engine.server.chat import thinks
from semipd_engine.server.core_client import CoreClient
from semipd_engine.server.encoding import Encoding
from semipd_engine.server.errors import ApiError, bad_request, beyond_targets, unavailable
from semipd_engine.server.gate import refusal
from semipd_engine.server.generation import Generation, Generations
from semipd_engine.server.grammar_judge import GrammarJudge
from semipd_engine.server.http_io import while_connected
from semipd_engine.server.metrics import EngineMetrics
from semipd_engine.server.params import check_scores, resolve
from semipd_engine.server.protocol import ChatRequest, GenerationRequest
from semipd_engine.server.sequence import TextOptions
from semipd_engine.server.tools import HERMES, MARKS, format_named, format_of, function_names, reasons

NO_GRAMMAR = {"response_format": {"type": "text"}}
"""Many clients say so: nobody is asked about it."""


class Service:
    """One per process; lives on the event loop that calls `run`."""

    def __init__(self, options: EngineOptions) -> None:
        if options.run_dir is None:
            raise ValueError("run_dir: the API process needs --run-dir, where core listens")
        card = load_model_card(options.model, options.served_model_name)  # first: it says that this is no model
        self.tokenizer = Tokenizer(options.model)
        self.card = card.with_ends(self.tokenizer.id_of)
        self.templates = ChatTemplates(self.card.chat_templates, self.card.special_tokens)
        self.metrics = EngineMetrics(self.card.name, options.block_size)
        self.admission = Admission(options.max_queued_requests, time.monotonic)
        self.core = CoreClient(options.run_dir, self)
        self.bodies = Bodies()
        self.generations = Generations(self.metrics, self.tokenizer, self.core.send)
        self.started_at = int(time.time())
        self.request_timeout = options.request_timeout
        self.strict_fields = options.strict_fields
        self.templates.reach(with_tools=False)
        told = None if self.templates.reach(with_tools=True).tools else HERMES
        self.tool_format = (
            format_of(self.card.chat_templates) or told
            if options.tool_parser is ToolParser.AUTO
            else format_named(options.tool_parser, self.card.chat_templates)
        )
        """How the model writes calls, where that is known: by its template, or as it is told here (`told_tools`)."""
        self.reasons = options.reasoning_parser is ReasoningParser.THINK or (
            options.reasoning_parser is ReasoningParser.AUTO and reasons(self.card.chat_templates)
        )
        self._markers = frozenset(found for text in MARKERS if (found := self.tokenizer.id_of(text)) is not None)
        self._marks = {text: found for text in MARKS if (found := self.tokenizer.special_id_of(text)) is not None}
        self.fingerprint = _fingerprint(options.model)
        limits = [limit for limit in (options.max_model_len, self.card.max_model_len) if limit]
        self.max_model_len = min(limits, default=0)
        self.encoding = Encoding(self.tokenizer, self.card.vocab_size)
        self.judge = GrammarJudge(options.model, self.card.vocab_size)
        self._texts = 0
        """Of `text_place`."""
        self._admitting = asyncio.Event()
        """Set while core is connected and takes requests."""

    # ---- what core says ----------------------------------------------------------------------------------------

    def core_state(self, state: CoreState) -> None:
        if not self.core.connected:
            self.metrics.core_connected(True)
        if state.max_model_len:
            self.max_model_len = state.max_model_len
        self.admission.core_state(state)
        (self._admitting.set if state.admitting else self._admitting.clear)()
        self.metrics.core_state(state)

    def core_outputs(self, outputs: Outputs) -> None:
        self.generations.outputs(outputs)

    def core_lost(self) -> None:
        self.metrics.core_connected(False)
        self.admission.core_lost()
        self._admitting.clear()
        self.generations.lost()

    # ---- what clients want -------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError` (404) for another model's name; no name means the only one there is."""
        if name is not None and name != self.card.name:
            message = f"model: {name!r} is not served here; use {self.card.name!r} (see /v1/models)"
            raise ApiError(404, message, param="model", code="model_not_found")

    def admit(
        self, prefix: str, request_id: str, prompts: Sequence[int], choices: int, wish: float | None = None
    ) -> Generation:
        """Reserve a place, before any work is done for the request. Raises `ApiError` (400, 429, 503).

        `prompts`: about how many tokens each has (`Encoding.estimate`): core hears of those that are refused. `wish`:
        seconds within which the client wants its first token.
        """
        received_at = time.monotonic()
        try:
            self.admission.check(self.generations.waiting, len(prompts) * choices)
            self._check_targets(prompts, len(prompts) * choices, received_at, wish)
        except ApiError as error:
            if error.status == 429:
                for tokens in prompts:
                    for _ in range(choices):
                        self.core.send(Rejected(received_at, tokens))
            raise
        return Generation(
            self.generations, f"{prefix}-{request_id}", prompts, choices, received_at, self.admission.gate
        )

    def _check_targets(self, prompts: Sequence[int], sequences: int, now: float, wish: float | None) -> None:
        """Raises `ApiError` (429)."""
        all_of_them = self.generations
        refused = refusal(
            self.admission.gate,
            all_of_them.backlog,
            prompts,
            now,
            in_work=all_of_them.in_work,
            sequences=sequences,
            wish=wish,
        )
        if refused is not None:
            raise beyond_targets(refused.slo, refused.message, refused.retry_after)

    @contextmanager
    def text_place(self) -> Iterator[None]:
        """A place for what is tokenised for its own sake. Raises `ApiError` (429)."""
        self.admission.check_texts(self._texts)
        self._texts += 1
        try:
            yield
        finally:
            self._texts -= 1

    async def grammar(self, request: GenerationRequest, receive: Receive, client: str) -> str:
        """What the answer must look like (`ipc.requests.AddRequest.grammar`). `client`: who asks, whose grammars wait
        for each other alone. Raises `ApiError` (400, 429, 503)."""
        given, grammar = request.grammar_fields, ""
        if isinstance(request, ChatRequest) and request.must_call:
            given.pop("response_format", None)  # it is about answers that call nothing
            if given:
                raise bad_request(next(iter(given)), "leave it out where tool_choice makes the answer a call")
            form, parallel = self.tool_format or HERMES, request.parallel_tool_calls is not False
            tools, only = request.tools or [], request.only_tool
            asked = self.judge.calls_grammar(tools, only, form, parallel, self._marks, client)
            grammar = await while_connected(receive, asked)
        elif given and given != NO_GRAMMAR:
            grammar = await while_connected(receive, self.judge.grammar_of(given, client))
        if grammar and (request.ignore_eos or request.min_tokens):
            field = "ignore_eos" if request.ignore_eos else "min_tokens"
            raise bad_request(field, "a grammar says where the answer ends; leave this out")
        if grammar and not self.card.eos_token_ids:
            field = next(iter(given), "tool_choice")
            raise bad_request(field, "this model names no end-of-sequence token, so no grammar can end")
        return grammar

    def _answer_options(self, request: GenerationRequest, grammar: str) -> AnswerOptions | None:
        """What the answer's text is read for; None: it is all content."""
        if not isinstance(request, ChatRequest):
            return None
        tools = request.shown_tools or []
        if (self.tool_format is None or grammar) and not request.must_call:
            tools = []
        reads_thoughts = self.reasons and not grammar
        if not tools and not reads_thoughts:
            return None
        only = request.only_tool
        return AnswerOptions(
            functions=frozenset(function_names(tools) if only is None else [only]),
            format=self.tool_format or HERMES,
            reasoning=reads_thoughts,
            thinking=request.continue_final_message and thinks(request.messages[-1]),
            forced=request.must_call,
            streamed=bool(request.stream),
            most_calls=1 if only is not None or request.parallel_tool_calls is False else 0,
            named=only is not None,
            short_ids=self.templates.reach(with_tools=True).short_ids,
            markers=self._markers,
        )

    async def start(
        self, generation: Generation, request: GenerationRequest, prompts: list[list[int]], grammar: str
    ) -> None:
        """Resolve the sampling of each prompt and send its sequences to core. Raises `ApiError`."""
        resolved = [(ids, resolve(request, len(ids), self.card, self.max_model_len)) for ids in prompts]
        check_scores(request, sum(map(len, prompts)))
        # A short outage of core is waited out here: nothing of this request is lost yet.
        if not self._admitting.is_set():
            try:
                async with asyncio.timeout(OUTAGE_GRACE_SECONDS):
                    while not self._admitting.is_set():  # it may be lost again before this coroutine's turn
                        await self._admitting.wait()
            except TimeoutError:
                raise unavailable("not ready: the scheduler is restarting; try again", "not_ready") from None
        text = TextOptions(
            stop=tuple(request.stop or ()),
            include_stop=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            eos_token_ids=frozenset(self.card.eos_token_ids),
            grammar=grammar,
            answer=self._answer_options(request, grammar),
            cache_salt=request.cache_salt or "",
            score_each=bool(request.stream),
            silent=request.scores_alone,
        )
        await generation.start(resolved, request.choices, text)

    async def run(self) -> None:
        """Keep the connection to core for ever."""
        self.metrics.set("semipd_core_connected", 0)
        with suppress(ApiError):  # the next grammar tries again
            await self.judge.start()
        try:
            await self.core.run()
        finally:
            await self.judge.end()

    def close(self) -> None:
        self.encoding.close()


def _fingerprint(model: Path) -> str:
    """OpenAI's `system_fingerprint`: equal for equal versions of the engine and equal model folders."""
    files = sorted((path.name, path.stat().st_size) for path in model.iterdir() if path.is_file())
    return "fp_" + hashlib.sha256(repr((software_version(), files)).encode()).hexdigest()[:10]


def software_version() -> str:
    try:
        return version("semipd")
    except PackageNotFoundError:
        return "unknown"
