"""Command-line flags of `EngineOptions`: the inverse of `EngineOptions.arguments`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from semipd_engine.contract import EngineOptions


def parse_options(arguments: Sequence[str] | None, program: str, description: str) -> EngineOptions:
    """Options from flags; exits 2 with a usage line that names the flag at fault."""
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    for name, field in EngineOptions.model_fields.items():
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=field.description)
        else:
            parser.add_argument(flag, dest=name, required=field.is_required(), help=field.description)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        return EngineOptions.model_validate(given)
    except ValueError as error:
        parser.error(str(error))
