"""A model's folder as the one file that llama.cpp reads.

Run as a script by the interpreter of its environment (which has numpy and gguf, and neither torch nor this project):
``python llama.py FOLDER OUT``. Otherwise it knows where such files lie. Weights stay bfloat16 as they are. The
vocabulary is not the model's: each token is a word of its own, so that every one of them is seen in a stream of text;
prompts are token ids.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf(model: Path) -> Path:
    """Where the file of this folder lies; `convert` puts it there."""
    from bench.cpu.environments import LLAMA

    return LLAMA.root / "models" / f"{model.name}.gguf"


def convert(model: Path) -> None:
    """Raises subprocess.SubprocessError."""
    from bench.cpu.environments import LLAMA

    target = gguf(model)
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        half = target.with_suffix(".half")
        subprocess.run([str(LLAMA.program("python")), __file__, str(model), str(half)], check=True)
        half.rename(target)


def renamed(name: str) -> str:
    """A tensor's name there. Raises KeyError: not a plain Llama."""
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name):
        return f"blk.{match[1]}.{NAMES[match[2]]}.weight"
    return NAMES[name]


def write(folder: Path, out: Path) -> None:
    import numpy
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = GGUFWriter(str(out), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    words = [f"<special{n}>" if n < 3 else f"▁w{n}" for n in range(config["vocab_size"])]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([TokenType.CONTROL if n < 3 else TokenType.NORMAL for n in range(len(words))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            length = struct.unpack("<Q", content[:8])[0]
            for name, entry in json.loads(content[8 : 8 + length]).items():
                if name == "__metadata__":
                    continue
                assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
                begin, end = entry["data_offsets"]
                data = numpy.frombuffer(content[8 + length + begin : 8 + length + end], dtype=numpy.uint16)
                data = data.reshape(entry["shape"])
                for kind, count in (("q_proj", heads), ("k_proj", kv_heads)):
                    if kind in name:  # its rotary embedding turns neighbours, not halves
                        halves = data.reshape(count, 2, head_dim // 2, -1)
                        data = numpy.ascontiguousarray(halves.swapaxes(1, 2)).reshape(data.shape)
                if data.ndim == 1:
                    wide = (data.astype(numpy.uint32) << 16).view(numpy.float32)
                    writer.add_tensor(renamed(name), wide)
                else:
                    writer.add_tensor(renamed(name), data.view(numpy.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
