"""The small files of a Hugging Face model directory, and the directory itself: it appears complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from semipd_engine.cards.errors import ModelError


@contextmanager
def new_model_dir(out: Path) -> Iterator[Path]:
    """A directory beside `out` to write into; becomes `out` on success and is removed on failure.

    Raises `ModelError` (AlreadyExists) if `out` is there and not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError("AlreadyExists", f"--out {out} exists and is not empty; choose another directory or remove it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(
    directory: Path, tokenizer: Tokenizer, special_tokens: Mapping[str, str], chat_template: str, max_length: int
) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja. `special_tokens`: bos_token, eos_token, …"""
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            **special_tokens,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    if chat_template:
        (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
