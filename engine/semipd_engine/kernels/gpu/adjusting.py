"""Logits as a request wants them, on the device: bias, stop ids, penalties, and what a grammar allows. Triton.

Two kernels whatever the rows ask for. The first copies, and forbids what a mask forbids; the second goes over the
tokens that a row names, once each. Both read the model's own logits, so their order is all that joins them. Each
operation is rounded as in the twin: the second is compiled without fused multiply-adds, and divides as IEEE 754 says.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 4096
"""Of one program of `_forbid`."""
EDITS = 512
"""Of one turn of `_edit`."""


@triton.jit
def _allowed(masks, which, words, tokens, there):
    """Bit t % 32 of word t // 32; all are allowed where there is no mask."""
    word = tl.load(masks + which.to(tl.int64) * words + tokens // 32, mask=there & (which >= 0), other=-1)
    return ((word >> (tokens % 32)) & 1) != 0


@triton.jit(do_not_specialize=["words"])
def _forbid(logits, masks, mask_of, out, logit_stride, words, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab
    values = tl.load(logits + row * logit_stride + tokens, mask=inside, other=0.0)
    allowed = _allowed(masks, tl.load(mask_of + row), words, tokens, inside)
    tl.store(out + row * vocab + tokens, tl.where(allowed, values, float("-inf")), mask=inside)


@triton.jit(do_not_specialize=["words"])
def _edit(
    logits, edits, starts, repetition, masks, mask_of, out, logit_stride, words, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    which, end = tl.load(mask_of + row), tl.load(starts + row + 1)
    penalty = tl.load(repetition + row) + tl.zeros([BLOCK], tl.float32)
    for begin in range(tl.load(starts + row), end, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        there = at < end
        edit = edits + at.to(tl.int64) * 4
        token, kind = tl.load(edit, mask=there, other=0), tl.load(edit + 3, mask=there, other=0)
        bias = tl.load(edit + 1, mask=there, other=0).to(tl.float32, bitcast=True)
        lessened = tl.load(edit + 2, mask=there, other=0).to(tl.float32, bitcast=True)
        value = tl.load(logits + row * logit_stride + token, mask=there, other=0.0) + bias
        value = tl.where((kind & 2) != 0, float("-inf"), value)
        penalised = tl.where(value > 0.0, tl.div_rn(value, penalty), value * penalty)
        value = tl.where((kind & 1) != 0, penalised, value) - lessened
        allowed = _allowed(masks, which, words, token, there)
        tl.store(out + row * vocab + token, tl.where(allowed, value, float("-inf")), mask=there)


def adjust(logits: Tensor, edits: Tensor, starts: Tensor, repetition: Tensor, masks: Tensor, mask_of: Tensor) -> Tensor:
    """See `signatures.Kernels.adjust`."""
    rows, vocab = logits.shape
    out = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device)
    if rows:
        sizes = (logits.stride(0), masks.shape[1], vocab)
        _forbid[(rows, triton.cdiv(vocab, TOKENS))](logits, masks, mask_of, out, *sizes, BLOCK=TOKENS)
        _edit[(rows,)](
            *(logits, edits, starts, repetition, masks, mask_of, out, *sizes), BLOCK=EDITS, enable_fp_fusion=False
        )
    return out
