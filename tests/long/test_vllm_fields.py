"""Every field of the newest vLLM's two completion endpoints against our table: none is unknown."""

from __future__ import annotations

import ast

import pytest

from bench.cpu.environments import VLLM, make
from semipd_engine.server import fields
from semipd_engine.server.protocol import ChatRequest, CompletionRequest

pytestmark = pytest.mark.long


@pytest.mark.parametrize("module", ["completion", "chat_completion"])
def test_each_field_of_the_newest_vllm_is_decided(module: str) -> None:
    """Honoured, harmless or refused by the table: none is unknown. The classes are read, not run."""
    make(VLLM)
    (source,) = VLLM.root.glob(f"lib/python*/site-packages/vllm/entrypoints/openai/{module}/protocol.py")
    classes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)]
    wanted = {"completion": "CompletionRequest", "chat_completion": "ChatCompletionRequest"}[module]
    (request,) = [node for node in classes if node.name == wanted]
    names = [
        node.target.id for node in request.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    ours = CompletionRequest if module == "completion" else ChatRequest
    asked = {name: object() for name in names if name[0] != "_" and name not in ours.model_fields}
    assert len(names) > 40
    unknown = [name for name in asked if name not in fields.HARMLESS and name not in fields.REFUSED]
    assert set(unknown) <= (fields.ONLY_COMPLETIONS if ours is ChatRequest else fields.ONLY_CHAT), unknown
