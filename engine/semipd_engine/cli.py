"""``semipd-engine``: serve a model, make, import, fetch or measure one. A command is imported only when asked for."""

from __future__ import annotations

import importlib
import sys

from semipd_engine.usage import Parser

COMMANDS = {
    "make-model": ("semipd_engine.hub.make_model", "make a random-weight model with a tokenizer"),
    "import-gguf": ("semipd_engine.hub.import_gguf", "turn a GGUF file into a Hugging Face directory"),
    "check": ("semipd_engine.hub.check", "judge a model folder without loading it"),
    "profile": ("semipd_engine.profiler.command", "measure step times on this machine"),
    "fetch": ("semipd_engine.hub.fetch", "bring a model from its source to a directory"),
}
"""Command -> module with ``add_command(subparsers)``, whose parser has a default ``func(arguments) -> int``."""


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] == "serve":
        from semipd_engine.contract import EngineOptions, no_api_key
        from semipd_engine.hub.check import refusal
        from semipd_engine.launcher import serve
        from semipd_engine.process import REFUSED, no_port

        options = EngineOptions.parse(arguments[1:], "semipd-engine serve", "Serve a model over the OpenAI API.")
        # Without a run directory a person started it. The agent shows what is wrong itself, and waits for a repair.
        if options.run_dir is None and (problem := refusal(options.model)):
            print(f"semipd-engine serve: the model cannot be served: {problem}", file=sys.stderr)
            return REFUSED
        problem = no_api_key(options.api_key_file)
        if options.run_dir is None:
            problem = problem or no_port(options.host, options.port)
        if problem:
            print(f"semipd-engine serve: {problem}", file=sys.stderr)
            return REFUSED
        return serve(options)
    parser = Parser(prog="semipd-engine", description="The two-phase inference engine of SemiPD.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subparsers.add_parser("serve", help="serve a model over the OpenAI API", add_help=False)
    asked = [arguments[0]] if arguments and arguments[0] in COMMANDS else []
    for name, (module, text) in COMMANDS.items():
        if name in asked:
            importlib.import_module(module).add_command(subparsers)
        else:
            subparsers.add_parser(name, help=text, add_help=False)
    parsed = parser.parse_args(arguments)
    return int(parsed.func(parsed))


if __name__ == "__main__":
    sys.exit(main())
