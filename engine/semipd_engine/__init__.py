"""Two-phase engine: prefill and decode as two processes over one copy of the weights and one paged KV pool."""
