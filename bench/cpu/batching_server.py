"""transformers' continuous batching behind the two routes that this benchmark asks for.

Run as a script by the interpreter of its environment (transformers, torch, fastapi, uvicorn; not this project):
``python batching_server.py MODEL --port N``. Greedy, and no request ends before its `max_tokens`: all that is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kv-bytes", type=int, required=True)
    asked = parser.parse_args()

    import torch
    import uvicorn
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    torch.set_num_threads(asked.threads)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16)
    config = model.config
    block, head_dim = 32, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
    manager = model.init_continuous_batching(
        generation_config=greedy,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=block, num_blocks=asked.kv_bytes // token_bytes // block
        ),
    )
    manager.start()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "model"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        content = await request.json()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        name = manager.add_request(
            content["prompt"], streaming=True, max_new_tokens=content["max_tokens"], eos_token_id=-1
        )
        if name is None:
            raise HTTPException(503, "the scheduler takes no more requests")
        manager.register_result_handler(name, queue.put_nowait)
        events = stream(name, queue)
        if content.get("stream"):
            return StreamingResponse(events, media_type="text/event-stream")
        return {"choices": [json.loads(event[6:])["choices"][0] async for event in events][-1:]}

    async def stream(name: str, queue: asyncio.Queue[Any]) -> AsyncIterator[str]:
        sent, ended = 0, False
        try:
            while not ended:
                output = await queue.get()
                ended = output.is_finished()
                if output.error:
                    yield f"data: {json.dumps({'error': output.error})}\n\n"
                    return
                ids, sent = output.generated_tokens[sent:], len(output.generated_tokens)
                choice = {"text": "", "token_ids": ids, "finish_reason": "length" if ended else None}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        finally:
            if not ended:
                manager.cancel_request(name)

    uvicorn.run(app, host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
