"""The rows of one step as the layers see them. Neutral: it says where rows stand, not which phase they belong to.

A decode row is a sequence with one row, a chunk a sequence with several; both may share a batch. Built once for each
step. Gathers, masks, groups and splits are an attention backend's business. Knows nothing of requests and sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """T rows of S sequences. All tensors are int32, on the model's device."""

    token_ids: Tensor
    """[T]"""
    positions: Tensor
    """[T]"""
    slot_mapping: Tensor
    """[T]: where each row's key and value go (block * block_size + offset); -1 writes nothing."""
    block_tables: Tensor
    """[S, blocks]: each sequence's blocks in order; entries behind its last position are never read."""
    seq_lens: Tensor
    """[S]: positions, the new rows included."""
    query_start_loc: Tensor
    """[S + 1]: sequence s has the rows ``query_start_loc[s] .. query_start_loc[s + 1] - 1``, its last positions."""
    visible: int
    """Positions seen, summed over the rows: what attention costs. Known to the host, so that nobody asks the device."""

    @property
    def rows(self) -> int:
        return int(self.token_ids.shape[0])
