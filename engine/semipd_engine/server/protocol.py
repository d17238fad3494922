"""Request bodies of the OpenAI surface, checked on arrival. Knows fields and ranges, not what is done with them.

What a single field may hold is in `body_values`. Fields beyond OpenAI's are vLLM's, under vLLM's names. The models have
those that are honoured; what becomes of the others `fields` decides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from semipd_engine.server import body_schemas
from semipd_engine.server.body_values import (
    INT32_MAX,
    MAX_LOGPROBS,
    AnswerTokens,
    Listed,
    LogitBias,
    LogprobCount,
    Message,
    Off,
    On,
    Prompts,
    Schema,
    Stop,
    TokenCount,
    TokenId,
    ToolChoice,
    Tools,
)
from semipd_engine.server.tools import Tool, function_names

MAX_CHOICES = 128
MAX_MESSAGES = 1 << 13
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

GRAMMAR_FIELDS = (
    *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("guided_json_object", "guided_whitespace_pattern"),
)
NO_VARIABLES = {
    "messages": "send them as messages",
    "tools": "send them as tools",
    "continue_final_message": "send it as a field of the request",
    "chat_template": "templates come with the model; send a rendered prompt to /v1/completions",
    "tokenize": "ask /tokenize for a chat's tokens",
}
"""Names that `chat_template_kwargs` may not have: what the template must see is settled, or it is none of its own."""
REQUEST_ID = r"^[!-~]{1,128}$"
"""Of printable ASCII, without blanks."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: Off = False
    continuous_usage_stats: Off = False


class GenerationRequest(BaseModel):
    """What both completion APIs share."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=INT64_MIN, le=INT64_MAX)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    logit_bias: LogitBias | None = None
    stop: Stop | None = None
    stop_token_ids: Listed[TokenId] | None = Field(default=None, max_length=1024)
    include_stop_str_in_output: Off = False
    ignore_eos: Off = False
    min_tokens: TokenCount | None = None
    max_tokens: TokenCount | None = None
    skip_special_tokens: On = True
    return_token_ids: Off = False
    return_tokens_as_token_ids: Off = False
    response_format: Annotated[dict[str, Any], WithJsonSchema(body_schemas.RESPONSE_FORMAT)] | None = None
    structured_outputs: Annotated[dict[str, Any], WithJsonSchema(body_schemas.STRUCTURED_OUTPUTS)] | None = None
    guided_json: Schema = None
    guided_regex: str | None = None
    guided_choice: Listed[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None
    request_id: Annotated[str, Field(pattern=REQUEST_ID)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    prompt_logprobs: LogprobCount = None
    priority: int | None = Field(default=None, ge=INT64_MIN, le=INT64_MAX)
    echo: bool | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def echoes(self) -> bool:
        """Does the whole prompt come back before the answer?"""
        return False

    @property
    def scores_alone(self) -> bool:
        """Is it about its prompts alone: an echo that nothing follows?"""
        return self.max_tokens == 0

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def other_fields(self) -> dict[str, Any]:
        """By name, those of the options for streams with theirs before it."""
        options = self.stream_options.model_extra if self.stream_options else None
        return (self.model_extra or {}) | {f"stream_options.{name}": value for name, value in (options or {}).items()}

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def grammar_fields(self) -> dict[str, Any]:
        """What is said of the answer's form."""
        return {name: value for name in GRAMMAR_FIELDS if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _check_together(self) -> GenerationRequest:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: only allowed with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: not in streams; leave one of them out")
        if self.scores_alone and not self.echoes:
            raise ValueError("max_tokens: 0 is for echo: true only; ask for at least 1")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: LogprobCount = None
    add_special_tokens: On = True

    @property
    def echoes(self) -> bool:
        return bool(self.echo)


class TemplateFields(BaseModel):
    """What the chat template sees beside the messages."""

    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: Off = False
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Listed[dict[str, Any]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @property
    def effort_variables(self) -> dict[str, Any]:
        if self.reasoning_effort is None:
            return {}
        return {"reasoning_effort": self.reasoning_effort, "enable_thinking": self.reasoning_effort != "none"}

    @property
    def template_variables(self) -> dict[str, Any]:
        """The client's own `chat_template_kwargs` win."""
        variables = {} if self.documents is None else {"documents": self.documents}
        variables |= self.effort_variables
        return variables | (self.chat_template_kwargs or {})

    @property
    def shown_tools(self) -> list[Tool] | None:
        return self.tools

    @model_validator(mode="after")
    def _check_template_fields(self) -> TemplateFields:
        given = self.chat_template_kwargs or {}
        for name in given:
            if name in NO_VARIABLES:
                raise ValueError(f"chat_template_kwargs: {name} is no variable of a client's; {NO_VARIABLES[name]}")
        if self.continue_final_message and given.get("add_generation_prompt", self.add_generation_prompt):
            raise ValueError("continue_final_message: excludes add_generation_prompt: true; set that to false")
        return self


class ChatRequest(GenerationRequest, TemplateFields):
    """POST /v1/chat/completions."""

    messages: Listed[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    max_tokens: AnswerTokens | None = None
    max_completion_tokens: AnswerTokens | None = None
    add_special_tokens: Off = False

    @property
    def shown_tools(self) -> list[Tool] | None:
        """Nothing where no tool may be called: the model would try."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def only_tool(self) -> str | None:
        """The name of the function that the answer must call."""
        return str(self.tool_choice["function"]["name"]) if isinstance(self.tool_choice, dict) else None

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or self.only_tool is not None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        if self.must_call and not self.tools:
            raise ValueError("tool_choice: needs tools")
        if self.only_tool is not None and self.only_tool not in function_names(self.tools or []):
            raise ValueError(f"tool_choice: no function of tools has the name {self.only_tool!r}")
        return self


class TokenizeRequest(TemplateFields):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    prompt: str | None = None
    messages: Listed[Message] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool | None = None
    return_token_strs: Off = False

    @property
    def other_fields(self) -> dict[str, Any]:
        return self.model_extra or {}

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        return self


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    tokens: Listed[TokenId]

    @property
    def other_fields(self) -> dict[str, Any]:
        return self.model_extra or {}
