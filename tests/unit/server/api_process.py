"""The api process as a test sees it: its URL, its client, the stand-in core behind it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.unit.server.api_standin import StandInCore


@dataclass
class Api:
    """A running api process and the core it talks to."""

    process: subprocess.Popen[bytes]
    url: str
    core: StandInCore
    client: httpx.Client
    run_dir: Path

    def complete(self, prompt: Any = "The quick", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8} | fields)

    def chat(self, content: Any = "The quick", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8} | fields)

    def metrics(self) -> str:
        return self.client.get("/metrics").text


StartApi = Callable[..., Api]
