"""``semipd-engine import-gguf FILE --out DIR``: a GGUF file becomes a Hugging Face model directory.

Quantised weights are dequantised; one tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from semipd_engine.cards.errors import ModelError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def import_gguf(source: Path, out: Path, dtype: str = "bfloat16", progress: bool = True) -> None:
    """Write the model of `source` to the directory `out`. Raises `ModelError`."""
    import torch
    from tqdm import tqdm

    from semipd_engine.cards.fields import Fields
    from semipd_engine.cards.registry import parse_card
    from semipd_engine.cards.weights import checkpoint_tensors, weight_specs
    from semipd_engine.hub.checkpoint_writer import CheckpointWriter
    from semipd_engine.hub.gguf_file import GGUFFile
    from semipd_engine.hub.model_dir import new_model_dir, write_json, write_tokenizer

    if not source.is_file():
        raise ModelError("NotFound", f"{source} does not exist")
    file = GGUFFile(source)
    values = file.config(dtype)
    config = parse_card(Fields(values, str(source)))
    tensors = checkpoint_tensors(weight_specs(config))
    with new_model_dir(out) as directory:
        write_json(directory / "config.json", values)
        write_json(
            directory / "generation_config.json",
            {"bos_token_id": values["bos_token_id"], "eos_token_id": values["eos_token_id"]},
        )
        write_tokenizer(
            directory,
            file.tokenizer(),
            file.special_tokens(),
            file.get("tokenizer.chat_template", ""),
            config.max_position_embeddings,
        )
        with CheckpointWriter(directory / "model.safetensors", tensors, getattr(torch, dtype)) as writer:
            for tensor in tqdm(tensors, desc="import-gguf", unit="tensor", disable=not progress):
                writer.write(torch.from_numpy(file.tensor(tensor.name, config.num_heads, config.num_kv_heads).copy()))


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "import-gguf", help="make a Hugging Face model directory from a GGUF file", description=__doc__
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="GGUF file (Llama, Qwen2 or Qwen3)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write; must not exist yet")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.set_defaults(func=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        import_gguf(arguments.file, arguments.out, arguments.dtype)
    except ModelError as error:
        print(f"semipd-engine import-gguf: {error}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m semipd_engine.hub.import_gguf")
    add_command(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["import-gguf", *sys.argv[1:]])
    return int(arguments.func(arguments))


if __name__ == "__main__":
    sys.exit(main())
