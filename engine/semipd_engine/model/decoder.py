"""The decoder: embedding, the layers' stages, final norm and language-model head, for every family.

Holds references to shared weights and to the KV pool, and no state of its own between two steps but its buffers. Its
loop cuts the stages for the pacer. Knows nothing of requests and sampling.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.registry import FAMILIES
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.batch import Batch
from semipd_engine.model.cuts import StageLoop
from semipd_engine.model.layers.attention import AttentionBackend, PagedAttention
from semipd_engine.model.layers.linear import Linear, Project
from semipd_engine.model.layers.mla import LatentAttention
from semipd_engine.model.layers.norm import BLOCK, HIDDEN, NORMED
from semipd_engine.model.layers.parts import Parts
from semipd_engine.model.layers.rotary import RotaryEmbedding
from semipd_engine.model.stage import Stage, Step, Work, Workspace
from semipd_engine.pacing.quantum import Pacer

LOGITS = "logits"


class Enter:
    """Stage: the embeddings of the step's tokens, and what all layers share."""

    recordable = False

    def __init__(self, embedding: Linear, rotary: RotaryEmbedding, backend: AttentionBackend) -> None:
        self._embedding, self._rotary, self._backend = embedding, rotary, backend

    def units(self, step: Step) -> int:
        return 1

    def work(self, step: Step) -> Work:
        return Work(read=2 * step.batch.rows * self._embedding.in_features * step.workspace.itemsize)

    def run(self, step: Step, begin: int, end: int) -> None:
        self._rotary.prepare(step)
        self._backend.prepare(step.batch)
        self._embedding.gather(step.batch.token_ids, step.rows(HIDDEN, self._embedding.in_features))


class Decoder:
    def __init__(self, config: ModelConfig, weights: WeightArena, kv: KVPool, kernels: Kernels, pacer: Pacer) -> None:
        """`weights` are named as in `weight_specs`; read, never written."""
        device = weights.region.data.device
        self._width = config.hidden_size
        backend = PagedAttention if config.latent is None else LatentAttention
        self.backend: AttentionBackend = backend(kernels, kv, config.attention_scale)
        parts = Parts(config, kernels, weights, kv, self.backend)
        self._embedding = Linear(kernels, weights.packed("embedding"))
        lm_head = self._embedding if config.tie_word_embeddings else Linear(kernels, weights.packed("lm_head"))
        self.rotary = RotaryEmbedding(config.rope, config.head_dim, device)
        family = import_module(f"semipd_engine.model.families.{FAMILIES[config.architecture].wiring}")
        body: list[Stage] = [Enter(self._embedding, self.rotary, self.backend)]
        for index in range(config.num_layers):
            body += family.layer(parts, index)
        head: list[Stage] = [parts.norm("norm"), Project(lm_head, NORMED, LOGITS, torch.float32)]
        latent = None if config.latent is None else (config.latent.width, config.latent.rank)
        rates = kernels.rates(kv.dtype, config.head_dim, latent)
        self.body, self.head = StageLoop(body, kernels, pacer, rates), StageLoop(head, kernels, pacer, rates)
        self._vocab_size = config.vocab_size
        self._workspace, self._head_workspace = Workspace(kv.dtype, device), Workspace(kv.dtype, device)

    def workspaces(self) -> tuple[Workspace, Workspace]:
        """Fresh ones for `forward` and `logits`, for steps whose buffers must stay where they are."""
        return self._workspace.fresh(), self._head_workspace.fresh()

    def forward(self, batch: Batch, workspace: Workspace | None = None) -> Step:
        """Write all keys and values; the step's buffers hold the residual stream and what the last layer adds to it."""
        step = Step(batch, workspace or self._workspace)
        self.body.run(step)
        return step

    def logits(self, step: Step, rows: Tensor, workspace: Workspace | None = None) -> Tensor:
        """Of the rows with these indices, int32 or int64 [R], of the step just done: float32 [R, vocab_size], valid
        until the next one."""
        head = Step(replace(step.batch, token_ids=rows), workspace or self._head_workspace)
        for name in (HIDDEN, BLOCK):
            torch.index_select(step.rows(name, self._width), 0, rows, out=head.rows(name, self._width))
        self.head.run(head)
        return head.rows(LOGITS, self._vocab_size, torch.float32)
