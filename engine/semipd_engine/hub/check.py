"""``semipd-engine check``: what ``serve`` would say to a model folder. Reads all of it but the tensors' numbers: names,
shapes and formats stand in the files' headers. Torch-free, in a second."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.cards.checkpoint import FUSED, NUMBERS, Inventory, Stored, spelt
from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import denied, there
from semipd_engine.cards.model_card import ModelCardError, load_model_card
from semipd_engine.cards.registry import read_card
from semipd_engine.cards.tokenizer import Tokenizer, TokenizerError
from semipd_engine.cards.weights import LM_HEAD, checkpoint_tensors, embedding_name, weight_specs
from semipd_engine.hub.model_folder import IncompleteModel, check_model_folder, gguf_remedy, tensors
from semipd_engine.process import REFUSED


def refusal(directory: Path) -> str | None:
    """Why no engine can ever serve this folder, with the file at fault; None: nothing speaks against it."""
    return weights_refusal(directory) or api_refusal(directory)


def weights_refusal(directory: Path) -> str | None:
    """The same for what the resident reads. A pod's status has these words, too, whatever failed first in it."""
    if why := denied(directory):
        return why
    if not directory.is_dir():
        return f"{directory} is no directory; point spec.model.uri, or --model, at a Hugging Face model folder"
    if not there(directory / "config.json") and (remedy := gguf_remedy(directory)):
        return f"{directory / 'config.json'} is missing; {remedy}"
    try:
        config = read_card(directory)  # first: of what no engine runs it does not matter what is missing
        check_model_folder(directory)
        _check_tensors(directory, config)
    except IncompleteModel as error:
        return str(error)
    except ModelError as error:
        return str(error) if str(error).startswith(str(directory)) else f"{directory}: {error}"
    return None


def api_refusal(directory: Path) -> str | None:
    """The same for what the api process reads: tokenizer, templates, defaults."""
    try:
        card = load_model_card(directory)
        ChatTemplates(card.chat_templates, card.special_tokens)
        card.with_ends(Tokenizer(directory).id_of)
    except (ModelCardError, TokenizerError) as error:
        return str(error)
    return None


def chat_objection(directory: Path) -> str | None:
    """Why a folder that can be served answers no chat; None: it does. Raises `ModelCardError`."""
    card = load_model_card(directory)
    return ChatTemplates(card.chat_templates, card.special_tokens).objection()


def _check_tensors(directory: Path, config: ModelConfig) -> None:
    """Raises `ModelError` or `IncompleteModel` for what the loader would not read."""
    found = list(tensors(directory))
    names = {name for name, _ in found}
    config = spelt(config, names)
    experts = config.mixture.routing.experts * sum(config.mixture.layers) if config.mixture else 0
    # Before they are all named: a hostile number of them fills the memory.
    if len(found) + _stacked(found, config) < config.num_layers + experts:
        said = f"{directory}: config.json has {config.num_layers} layers and {experts} experts in them, and the files"
        raise ModelError("MissingTensors", f"{said} have {len(found)} tensors")
    if {embedding_name(config), LM_HEAD} <= names:
        # The loader unties the two where their numbers differ, which are not read here: either way they have one shape.
        config = replace(config, tie_word_embeddings=False)
    inventory = Inventory({one.name: one.shape for one in checkpoint_tensors(weight_specs(config))}, config)
    for name, stored in found:
        inventory.add(name, stored)
    inventory.complete(directory)


def _stacked(found: Iterable[tuple[str, Stored]], config: ModelConfig) -> int:
    """Experts that lie together. Only of a known format and the right shape are so many numbers in the file as the
    header says."""
    if config.mixture is None:
        return 0
    each = (2 * config.mixture.intermediate_size, config.hidden_size)
    fused = (stored for name, stored in found if name.endswith(FUSED) and stored.dtype in NUMBERS)
    return sum(stored.shape[0] for stored in fused if stored.shape[1:] == each)


def add_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("check", help="judge a model folder without loading it")
    parser.add_argument("model", type=Path, help="Hugging Face model folder")
    parser.set_defaults(func=_check)


def _check(arguments: argparse.Namespace) -> int:
    problem = refusal(arguments.model)
    if problem:
        print(problem, file=sys.stderr)
        return REFUSED
    silent = chat_objection(arguments.model)
    print(f"{arguments.model}: can be served{f', but no chat: {silent}' if silent else ''}")
    if os.geteuid() == 0 and (closed := _closed(arguments.model)):
        print(f"{closed[0]}: root reads it, and the user of a pod may not; chmod a+rX it", file=sys.stderr)
    return 0


def _closed(directory: Path) -> list[Path]:
    """What of the folder is read by its owner alone: nothing keeps root out, so its own attempt says nothing."""
    entries = [directory.resolve(), *(path for path in sorted(directory.iterdir()) if path.exists())]
    return [path for path in entries if not path.stat().st_mode & (0o011 if path.is_dir() else 0o044)]
