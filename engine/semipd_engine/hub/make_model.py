"""``semipd-engine make-model --preset tiny|small --arch llama|qwen2|... --out DIR --seed N``: a random model.

A complete Hugging Face directory (weights, tokenizer, chat template) for tests, benchmarks and first steps without a
download. What it says means nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import FAMILIES, parse_card

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

PRESETS = ("tiny", "small")


def make_model(preset: str, architecture: str, out: Path, seed: int = 0, progress: bool = True) -> None:
    """Write the model to the directory `out`. Raises `ModelError`."""
    import torch
    from tqdm import tqdm

    from semipd_engine.cards.fields import Fields
    from semipd_engine.cards.weights import checkpoint_tensors, weight_specs
    from semipd_engine.hub import random_model
    from semipd_engine.hub.bpe_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, train_tokenizer
    from semipd_engine.hub.checkpoint_writer import CheckpointWriter
    from semipd_engine.hub.model_dir import new_model_dir, write_json, write_tokenizer

    sizes = random_model.PRESETS[preset]
    end_of_text, _, end_of_turn = range(3)
    eos = [end_of_turn, end_of_text]
    values = random_model.model_config(sizes, architecture, eos)
    config = parse_card(Fields(values, "config.json"))
    tensors = checkpoint_tensors(weight_specs(config))
    with new_model_dir(out) as directory:
        write_json(directory / "config.json", values)
        write_json(directory / "generation_config.json", {"eos_token_id": eos, "pad_token_id": end_of_text})
        special = {"eos_token": SPECIAL_TOKENS[end_of_turn], "pad_token": SPECIAL_TOKENS[end_of_text]}
        tokenizer = train_tokenizer(sizes.vocab_size)
        write_tokenizer(directory, tokenizer, special, CHAT_TEMPLATE, sizes.max_position_embeddings)
        with CheckpointWriter(directory / "model.safetensors", tensors, getattr(torch, sizes.dtype)) as writer:
            for tensor in tqdm(tensors, desc="make-model", unit="tensor", disable=not progress):
                writer.write(random_model.random_tensor(tensor, seed))


def add_command(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("make-model", help="make a model with random weights", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="15 million or 0.5 billion parameters")
    parser.add_argument("--arch", choices=tuple(FAMILIES), default="llama", help="architecture")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write; must not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same model")
    parser.set_defaults(func=_run)


def _run(arguments: argparse.Namespace) -> int:
    try:
        make_model(arguments.preset, arguments.arch, arguments.out, arguments.seed)
    except ModelError as error:
        print(f"semipd-engine make-model: {error}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m semipd_engine.hub.make_model")
    add_command(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["make-model", *sys.argv[1:]])
    return int(arguments.func(arguments))


if __name__ == "__main__":
    sys.exit(main())
