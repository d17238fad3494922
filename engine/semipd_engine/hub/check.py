"""``semipd-engine check``: can a model folder be served? Reads all of it but the tensors. Torch-free, in a second."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.model_card import ModelCardError, load_model_card
from semipd_engine.cards.registry import read_card
from semipd_engine.cards.tokenizer import Tokenizer, TokenizerError
from semipd_engine.hub.model_folder import IncompleteModel, check_model_folder
from semipd_engine.process import REFUSED


def refusal(directory: Path) -> str | None:
    """Why no engine can ever serve this folder, with the file at fault; None: nothing speaks against it."""
    if not directory.is_dir():
        return f"{directory} is no directory; point --model at a Hugging Face model folder"
    try:
        check_model_folder(directory)
        read_card(directory)
    except IncompleteModel as error:
        return str(error)
    except ModelError as error:
        return f"{directory}: {error}"
    return api_refusal(directory)


def api_refusal(directory: Path) -> str | None:
    """The same for what the api process reads: tokenizer, templates, defaults."""
    try:
        card = load_model_card(directory)
        ChatTemplates(card.chat_templates, card.special_tokens)
        card.with_ends(Tokenizer(directory).id_of)
    except (ModelCardError, TokenizerError) as error:
        return str(error)
    return None


def add_command(subparsers: Any) -> None:
    parser = subparsers.add_parser("check", help="judge a model folder without loading it")
    parser.add_argument("model", type=Path, help="Hugging Face model folder")
    parser.set_defaults(func=_check)


def _check(arguments: argparse.Namespace) -> int:
    problem = refusal(arguments.model)
    if problem:
        print(problem, file=sys.stderr)
        return REFUSED
    print(f"{arguments.model}: can be served")
    return 0
