"""The completion endpoints: from a checked request to an answer or a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import Request, Response

from semipd_engine.ipc.tokens import NO_LOGPROBS
from semipd_engine.server import chat, chat_fields, fields
from semipd_engine.server.errors import ApiError, bad_request, engine_failure
from semipd_engine.server.generation import Generation
from semipd_engine.server.headers import UNKNOWN_FIELDS_HEADER, add_header, request_id
from semipd_engine.server.http_io import EventStream, client_of, event, json_response, while_connected
from semipd_engine.server.json_text import dump
from semipd_engine.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)
from semipd_engine.server.responses import (
    ChatShape,
    Chunks,
    CompletionShape,
    Json,
    Shape,
    envelope,
    usage,
    worth_a_chunk,
)
from semipd_engine.server.sequence import Delta
from semipd_engine.server.service import Service
from semipd_engine.server.terms import read_terms
from semipd_engine.server.told_tools import in_words
from semipd_engine.server.tools import HERMES


async def completions(service: Service, request: Request) -> Response:
    """POST /v1/completions."""
    body, size = await service.bodies.read(request, CompletionRequest, service.max_model_len)
    service.check_model(body.model or None)
    judge_fields(service, request, body)
    shape = CompletionShape(body, service.tokenizer)
    lengths = [service.encoding.estimate(prompt, service.max_model_len) for prompt in body.prompt]

    def encode() -> list[list[int]]:
        return service.encoding.ids(body.prompt, body.add_special_tokens, service.max_model_len, body.scores_alone)

    return await _answer(service, request, body, shape, lengths, size, encode)


async def chat_completions(service: Service, request: Request) -> Response:
    """POST /v1/chat/completions."""
    body, size = await service.bodies.read(request, ChatRequest, service.max_model_len)
    service.check_model(body.model or None)
    judge_fields(service, request, body)
    shape = ChatShape(body, service.tokenizer)

    def encode() -> list[list[int]]:
        return service.encoding.ids([render(service, body)], body.add_special_tokens, service.max_model_len)

    lengths = [service.encoding.estimate(size, service.max_model_len)]
    return await _answer(service, request, body, shape, lengths, size, encode)


def render(service: Service, body: ChatRequest | TokenizeRequest) -> str:
    """The chat's text. Raises `ChatTemplateError`, `ApiError` (400)."""
    tools = body.shown_tools
    reach = service.templates.reach(bool(tools))
    messages = in_words(chat.normalise(body.messages or []), tools, reach, service.tool_format or HERMES)
    messages = chat.with_short_ids(messages) if reach.short_ids else messages
    return service.templates.render(
        messages,
        tools,
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=body.template_variables,
    )


def judge_fields(
    service: Service, request: Request, body: GenerationRequest | TokenizeRequest | DetokenizeRequest
) -> None:
    """Name the fields that nobody knows or reads; raises `ApiError` (400) for those that cannot be honoured."""
    given = dict(body.other_fields)
    if isinstance(body, GenerationRequest) and given.get("best_of") == body.choices:
        del given["best_of"]  # the best n of n: asks for nothing
    if isinstance(body, CompletionRequest) and given.get("max_completion_tokens") == body.max_tokens:
        given.pop("max_completion_tokens", None)  # benchmarks say the same to both endpoints, under both names
    unknown = fields.judge(given, type(body))
    if isinstance(body, ChatRequest | TokenizeRequest) and body.messages:
        tools = body.shown_tools
        unknown += chat_fields.unread(body, body.messages, service.templates.reach(bool(tools)))
        if isinstance(body, ChatRequest) and tools and not body.must_call and service.tool_format is None:
            unknown.append("tool_choice")  # the model may call: nobody here reads how it does
    refused = [name for name in unknown if name not in chat_fields.SENT_BACK]
    if refused and service.strict_fields:
        message = "is not known here, or without effect with this model (see docs/api.md); leave it out, or start "
        message += "without --strict-fields"
        raise bad_request(refused[0], message)
    if unknown:
        service.metrics.count("semipd_requests_with_unknown_fields_total")
        add_header(request.scope, UNKNOWN_FIELDS_HEADER, fields.header_value(unknown))


async def _answer(
    service: Service,
    request: Request,
    body: GenerationRequest,
    shape: Shape,
    prompts: Sequence[int],
    size: int,
    encode: Callable[[], list[list[int]]],
) -> Response:
    terms = read_terms(request.headers, body.priority, service.request_timeout)
    name = body.request_id or request_id(request.scope)
    generation = service.admit(shape.prefix, name, prompts, body.choices, terms.ttft_target)
    generation.accept(terms)
    try:
        grammar = await generation.in_time(service.grammar(body, request.receive, client_of(request.scope)))
        encoded = await generation.in_time(service.encoding.in_turn(size, encode, request.receive))
        await generation.in_time(service.start(generation, body, encoded, grammar))
        if body.stream:
            events = _events(service, generation, body, shape)
            return EventStream(events, finished=generation.close)
        answer = await while_connected(request.receive, _whole(service, generation, body, shape))
    except BaseException:
        generation.close()
        raise
    generation.close()
    return json_response(answer)


async def _whole(service: Service, generation: Generation, body: GenerationRequest, shape: Shape) -> bytes:
    """The answer as JSON text."""
    choices = {sequence.index: Delta(sequence.index) for sequence in generation.sequences}
    async for deltas in generation.deltas():
        for delta in deltas:
            choices[delta.index].merge(delta)

    def shaped() -> bytes:
        for sequence in generation.sequences:
            first = generation.sequences[sequence.index // body.choices * body.choices]
            sequence.prompt_logprobs = first.prompt_logprobs
        finished = [shape.choice(choices[sequence.index], sequence) for sequence in generation.sequences]
        answer = envelope(generation.id, shape.object, service.card.name, service.fingerprint, finished)
        answer["usage"] = usage(generation.sequences, body.choices)
        return dump(answer | shape.extra(generation.sequences))

    # Naming the likely tokens of a long prompt takes its time: in a thread, where others have theirs, too.
    named = any(sequence.packed_logprobs for sequence in generation.sequences)
    return await asyncio.to_thread(shaped) if named else shaped()


async def _events(
    service: Service, generation: Generation, body: GenerationRequest, shape: Shape
) -> AsyncIterator[bytes]:
    """Server-sent events: a choice at a time, then usage if asked for, then [DONE]. An error ends the stream."""
    chunks = Chunks(generation.id, shape.chunk_object, service.card.name, service.fingerprint, created=int(time.time()))
    opened: set[int] = set()
    extra = shape.extra(generation.sequences)

    def chunk(choices: list[Json], **more: Json | None) -> bytes:
        if (body.include_usage or body.continuous_usage) and "usage" not in more:
            more["usage"] = usage(generation.sequences, body.choices) if body.continuous_usage else None
        return chunks.event(choices, more)

    try:
        async for deltas in generation.deltas():
            for delta in deltas:
                if not worth_a_chunk(delta, body):
                    continue
                first = delta.index not in opened
                if first:
                    opened.add(delta.index)
                    if opening := shape.opening(delta.index):
                        yield chunk([opening], **(extra if len(opened) == 1 else {}))
                sequence = generation.sequences[delta.index]
                if first and sequence.packed_logprobs:  # as above
                    yield await asyncio.to_thread(lambda each, of: chunk([shape.chunk(each, of)]), delta, sequence)
                    sequence.packed_logprobs, sequence.prompt_logprobs = NO_LOGPROBS, []
                else:
                    yield chunk([shape.chunk(delta, sequence)])
        if body.include_usage:
            yield chunk([], usage=usage(generation.sequences, body.choices))
        yield event(b"[DONE]")
    except ApiError as error:
        yield event(error.body())
    except Exception:
        yield event(engine_failure("the API process failed on this request").body())
        raise
