"""The operations of a decoder layer. One signature each; today the torch reference serves every device."""

from semipd_engine.ops.torch_ref import (
    apply_rope,
    paged_decode,
    paged_prefill,
    rms_norm,
    silu_and_mul,
    write_kv,
)

__all__ = ["apply_rope", "paged_decode", "paged_prefill", "rms_norm", "silu_and_mul", "write_kv"]
