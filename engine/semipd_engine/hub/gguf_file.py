"""What a GGUF file says about its model, in Hugging Face terms: configuration, tensor names, tokenizer.

Covers the Llama, Qwen2 and Qwen3 architectures with a byte-level BPE vocabulary ("gpt2" in GGUF words).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import FAMILIES
from semipd_engine.cards.weights import EMBEDDING, LM_HEAD

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF."""
_LAYER_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class GGUFFile:
    """Raises `ModelError` for what cannot be expressed; `tensor` reads (and dequantises) one tensor at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError) as error:
            raise ModelError("InvalidCheckpoint", f"{path}: {error}") from error
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self.architecture = str(self.get("general.architecture"))
        known = [name for name, family in FAMILIES.items() if family.gguf]
        if self.architecture not in known:
            raise ModelError(
                "UnsupportedArchitecture",
                f"{path}: general.architecture is {self.architecture!r}; import-gguf knows {', '.join(known)}",
            )
        if "rope_freqs.weight" in self._tensors or self._arch("rope.scaling.type", "none") != "none":
            raise ModelError("UnsupportedRopeScaling", f"{path}: scaled rotary positions cannot be imported yet")

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value; without a default a missing key is an error."""
        field = self._reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise ModelError("InvalidCheckpoint", f"the GGUF file lacks the key {key}")
        return default

    def _arch(self, key: str, default: Any = None) -> Any:
        return self.get(f"{self.architecture}.{key}", default)

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json, spelt so that transformers 4 and 5 read it."""
        heads, hidden = self._arch("attention.head_count"), self._arch("embedding_length")
        return {
            "architectures": [f"{self.architecture.capitalize()}ForCausalLM"],
            "model_type": self.architecture,
            "vocab_size": len(self.get("tokenizer.ggml.tokens")),
            "hidden_size": hidden,
            "intermediate_size": self._arch("feed_forward_length"),
            "num_hidden_layers": self._arch("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._arch("attention.head_count_kv", heads),
            "head_dim": self._arch("attention.key_length", hidden // heads),
            "hidden_act": "silu",
            "max_position_embeddings": self._arch("context_length"),
            "rms_norm_eps": float(f"{self._arch('attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": self._arch("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": self.architecture == "llama" and "blk.0.attn_q.bias" in self._tensors,
            "bos_token_id": self.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.get("tokenizer.ggml.eos_token_id"),
            "torch_dtype": dtype,
        }

    def tensor(self, name: str, num_heads: int, num_kv_heads: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tensor by its checkpoint name (`cards.weights`), float32, rows first."""
        tensor = self._tensors.get(_gguf_name(name))
        if tensor is None:
            raise ModelError("MissingTensors", f"the GGUF file lacks {_gguf_name(name)} (for {name})")
        values = dequantize(tensor.data, tensor.tensor_type)
        if self.architecture == "llama" and ".q_proj." in name:
            return _unpermute(values, num_heads)
        if self.architecture == "llama" and ".k_proj." in name:
            return _unpermute(values, num_kv_heads)
        return values

    def special_tokens(self) -> dict[str, str]:
        tokens = self.get("tokenizer.ggml.tokens")
        keys = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
        ids = {name: self.get(f"tokenizer.ggml.{key}", -1) for name, key in keys.items()}
        return {name: tokens[token] for name, token in ids.items() if token >= 0}

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE tokenizer that the metadata describes."""
        kind, pre = self.get("tokenizer.ggml.model"), self.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2":
            raise ModelError("UnsupportedTokenizer", f"tokenizer.ggml.model is {kind!r}; import-gguf knows gpt2 (BPE)")
        tokens: list[str] = self.get("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.get("tokenizer.ggml.merges")]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
        tokenizer.pre_tokenizer = _pre_tokenizer(pre)
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        if self.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
            bos = tokens[self.get("tokenizer.ggml.bos_token_id")]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
            )
        types = self.get("tokenizer.ggml.token_type", [1] * len(tokens))
        added = [
            AddedToken(token, special=type_ == CONTROL, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in (CONTROL, USER_DEFINED)
        ]
        tokenizer.add_tokens(added)
        return tokenizer


def _gguf_name(name: str) -> str:
    fixed = {EMBEDDING: "token_embd.weight", LM_HEAD: "output.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, part = name.split(".", 3)
    part, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{_LAYER_PARTS[part]}.{kind}"


def _unpermute(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Llama's GGUF pairs rotary dimensions as (2i, 2i + 1); Hugging Face pairs (i, i + head_dim / 2)."""
    head_dim = values.shape[0] // heads
    split = values.reshape(heads, head_dim // 2, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match pre:
        case "gpt-2" | "default":
            return byte_level
        case "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        case "llama-bpe" | "qwen2":
            pattern = Regex(_WORDS % ("{1,3}" if pre == "llama-bpe" else ""))
            split = pre_tokenizers.Split(pattern, behavior="isolated")
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise ModelError("UnsupportedTokenizer", f"tokenizer.ggml.pre is {pre!r}; import-gguf does not know how it splits")
