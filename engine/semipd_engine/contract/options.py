"""Launch options of the engine."""

from __future__ import annotations

import argparse
import codecs
import errno
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from semipd_engine.contract.partition import Frozen
from semipd_engine.usage import Parser


class Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class DType(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LoadFormat(StrEnum):
    SAFETENSORS = "safetensors"
    DUMMY = "dummy"


class ToolParser(StrEnum):
    """How the model writes tool calls; the names are vLLM's."""

    AUTO = "auto"
    NONE = "none"
    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"


class ReasoningParser(StrEnum):
    AUTO = "auto"
    NONE = "none"
    THINK = "think"


CPU_CHUNK, GPU_CHUNK = 256, 2048
"""Tokens of a prompt's step: as few as its products and weights' reading are even on a CPU; on a GPU so many that its
products fill the device."""


class EngineOptions(Frozen):
    """Launch options of ``semipd-engine serve``: one declaration for the flags, the agent and the operator.

    Each field is the flag of the same name (``max_model_len`` is ``--max-model-len``), its description the help text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Path = Field(description="Hugging Face model directory")
    served_model_name: str = Field(default="", description="name in the API; default: the directory's name")
    device: Device = Field(default=Device.AUTO, description="auto takes cuda where a GPU is visible")
    dtype: DType = Field(default=DType.AUTO, description="auto: the checkpoint's, float32 on a CPU without bfloat16")
    load_format: LoadFormat = Field(
        default=LoadFormat.SAFETENSORS,
        description="dummy: random weights made on the device for the shapes of config.json, for measuring",
    )
    host: str = Field(default="127.0.0.1", description="address of the OpenAI API")
    port: int = Field(default=8000, ge=0, le=65535, description="port of the OpenAI API; 0 takes a free one")
    max_model_len: int = Field(default=0, ge=0, description="longest prompt + output, tokens; 0: the model's")
    max_num_seqs: int = Field(default=64, ge=1, description="most requests decoding at once")
    max_queued_requests: int = Field(default=512, ge=1, description="waiting requests above which new ones get 429")
    request_timeout: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="seconds for a request from receipt to its end; 0: no limit"
    )
    prefill_chunk_tokens: int = Field(
        default=0,
        ge=0,
        description=f"most prompt tokens of one prefill step; 0: {GPU_CHUNK} on a GPU, {CPU_CHUNK} on a CPU",
    )
    max_stall_ms: int = Field(
        default=1000, ge=0, description="longest that a stream waits for a step with prompts in it; 0: no bound"
    )
    kv_cache_memory: int = Field(default=0, ge=0, description="bytes of the KV pool; 0: a part of the free memory")
    block_size: int = Field(default=16, ge=1, description="tokens in one KV block")
    prefill_share: int = Field(default=100, ge=1, le=100, description="prefill's percent while both phases are busy")
    decode_share: int = Field(default=100, ge=1, le=100, description="decode's percent while both phases are busy")
    threads: int = Field(default=0, ge=0, description="CPU threads of a phase that is alone; 0: the CPUs granted")
    prefix_caching: bool = Field(default=True, description="reuse KV blocks of equal prompt prefixes")
    await_partition: bool = Field(default=False, description="start no worker before the first SetPartition")
    prepare_seconds: float = Field(default=90.0, gt=0, description="time for a worker under a new limit to get ready")
    unified: bool = Field(default=False, description="one process for both phases with chunked prefill, for comparison")
    api_key_file: Path | None = Field(
        default=None,
        description="file with the API keys of which requests must carry one: one on each line; # is a comment",
    )
    allowed_origins: str = Field(default="", description="web origins that may ask (CORS), with commas; * for all")
    strict_fields: bool = Field(default=False, description="refuse requests with unknown fields, not only name these")
    tool_parser: ToolParser = Field(
        default=ToolParser.AUTO,
        description="how the model writes tool calls: auto (by its chat template), none, hermes, llama3_json, mistral",
    )
    reasoning_parser: ReasoningParser = Field(
        default=ReasoningParser.AUTO,
        description="how it writes what it thinks: auto (by its chat template), none, think (<think>...</think>)",
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="time for running streams to finish after SIGTERM")
    run_dir: Path | None = Field(default=None, description="directory of the sockets (mode 0700); default: a fresh one")
    step_log: Path | None = Field(default=None, description="JSON Lines file with one record for each step (debugging)")

    def chunk_tokens(self, device: str) -> int:
        """Most prompt tokens of a step on `device` (``cpu`` or ``cuda``)."""
        return self.prefill_chunk_tokens or (GPU_CHUNK if device == Device.CUDA else CPU_CHUNK)

    def arguments(self) -> list[str]:
        """Command-line flags that parse back to these options; defaults are left out."""
        flags: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default or value is None:
                continue
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(flag if value else "--no-" + flag[2:])
            else:
                flags += [flag, str(value)]
        return flags

    @classmethod
    def parse(cls, arguments: Sequence[str] | None, program: str, description: str) -> EngineOptions:
        """The inverse of `arguments`; None: this process's own. Exits 2 with a line that names the flag at fault."""
        parser = Parser(prog=program, description=description, allow_abbrev=False)
        for name, field in cls.model_fields.items():
            flag = "--" + name.replace("_", "-")
            if field.annotation is bool:
                parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=field.description)
            else:
                parser.add_argument(flag, dest=name, required=field.is_required(), help=field.description)
        given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            parser.error(said(error))


def api_keys(file: Path) -> list[bytes]:
    """The keys of an ``--api-key-file``, one on each line. Raises OSError.

    A line that begins with ``#`` is a comment: as a key it would be one that people guess. What an editor puts before
    the first line (a byte order mark) is no part of a key.
    """
    lines = (line.strip() for line in file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines())
    return [line for line in lines if line and not line.startswith(b"#")]


_KEY_FILE, _NO_KEY = "--api-key-file", "holds no key: write one on each line"


def no_api_key(file: Path | None) -> str:
    """Why an API that demands a key would admit nobody, and look well: an empty Secret. Empty where it would not."""
    try:
        return "" if file is None or api_keys(file) else f"{_KEY_FILE} {file} {_NO_KEY}"
    except OSError as error:
        return f"{_KEY_FILE} {file}: {error.strerror}"


def lacked_api_key(message: str) -> bool:
    """Whether an engine that did not start said that its file holds no key, or is not there."""
    return _KEY_FILE in message and (_NO_KEY in message or os.strerror(errno.ENOENT) in message)


def said(error: ValidationError) -> str:
    """Of the first option at fault: its flag, what was given, and what it takes."""
    first = error.errors()[0]
    flag = " ".join("--" + str(part).replace("_", "-") for part in first["loc"][:1])
    return f"{flag} {first['input']}: {first['msg']}" if flag else str(first["msg"])
