"""``semipd``: the user's command line. run (a service without Kubernetes), doctor, validate, render, simulate.

Exit status: 0 well, 1 the manifest is refused or the run failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from semipd_cli.manifest import ManifestError, load
from semipd_cli.preflight import RunError, find
from semipd_engine.usage import Parser
from semipd_operator.crd import to_yaml
from semipd_operator.render import InvalidTemplate, render
from semipd_operator.settings import Settings, package_version

_ENDS = (
    "Exit status: 0 after a service that was asked to end; 130 (Ctrl-C) or 143 (SIGTERM) where it was never ready; "
    "1 where the manifest is refused or nothing can ever serve it, with one line that says why."
)
DEFAULT_ENGINE_IMAGE = "ghcr.io/semipd/engine"


def main() -> None:
    sys.exit(command(sys.argv[1:]))


def command(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["doctor"]:
        return _doctor(arguments[1:])
    if arguments[:1] == ["simulate"]:
        from semipd_cli.simulator.command import simulate  # validate and render need no engine

        return simulate(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return int(options.handle(options))
    except ManifestError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # of a run, before the agent was started
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `semipd render | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="semipd", description="Serve a SemiPDService, or look at one.")
    parser.add_argument("--version", action="version", version=package_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve a manifest here, without Kubernetes, in the foreground", epilog=_ENDS)
    run.set_defaults(handle=_run)
    run.add_argument("-f", "--file", type=Path, required=True, help="manifest with one SemiPDService; watched")
    _add_set(run)
    run.add_argument("--host", default="127.0.0.1", help="address of the OpenAI API")
    run.add_argument("--port", type=int, default=None, help="port of the OpenAI API; default: spec.service.port")
    run.add_argument("--agent-port", type=int, default=0, help="port of the agent; default: a free one")
    run.add_argument(
        "--claims",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where pvc://CLAIM/MODEL is read: FOLDER/CLAIM/MODEL; default: the current directory",
    )
    run.add_argument("--status-file", type=Path, default=None, help="keep the object with its status here, as JSON")
    run.add_argument(
        "--api-key-file",
        type=Path,
        default=None,
        help="file with the API keys that requests must bear, one on each line; read again for each request",
    )
    run.add_argument("--log-file", type=Path, default=None, help="append the output of agent and engine here")

    run.add_argument(
        "--token-file",
        type=Path,
        default=None,
        help="write the agent's token here, readable by you alone, for its control API (GET /v1/recording)",
    )

    commands.add_parser("doctor", help="check this machine: GPU, MPS, CPU (--help says more)", add_help=False)

    validate = commands.add_parser("validate", help="judge manifests as the API server would")
    validate.set_defaults(handle=_validate)
    validate.add_argument("-f", "--file", type=Path, action="append", required=True, help="repeatable")
    _add_set(validate)

    show = commands.add_parser("render", help="print the objects that the operator would apply")
    show.set_defaults(handle=_render)
    show.add_argument("-f", "--file", type=Path, required=True)
    _add_set(show)
    show.add_argument("-n", "--namespace", default="default", help="where the manifest names none")
    show.add_argument("--engine-image", default=f"{DEFAULT_ENGINE_IMAGE}:{package_version()}")

    commands.add_parser(
        "simulate", help="policies against workloads in virtual time (--help says more)", add_help=False
    )
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="set a field of spec, e.g. model.uri=file:///models/m; repeatable",
    )


def _doctor(arguments: Sequence[str]) -> int:
    """The checks are the agent's, as the serving pod has them; its own words and exit status."""
    program = find("semipd-agent")
    try:
        return subprocess.run([program, "doctor", *arguments], check=False).returncode
    except OSError as error:
        print(f"semipd doctor: {program} cannot be started ({error.strerror}): install semipd[agent]", file=sys.stderr)
        return 1


def _validate(options: argparse.Namespace) -> int:
    refused = 0
    for path in options.file:
        try:
            for manifest in load(path):
                service = manifest.service(options.settings)
                print(f"{path}: {service.metadata.name}: ok")
        except ManifestError as error:
            print(error, file=sys.stderr)
            refused = 1
    return refused


def _render(options: argparse.Namespace) -> int:
    # Without a key the agents obey nobody: these objects are for reading.
    settings = Settings(engine_image=options.engine_image, key=b"")
    for manifest in load(options.file):
        service = manifest.service(options.settings, namespace=options.namespace, generation=1)
        try:
            rendered = render(service, settings)
        except InvalidTemplate as error:
            raise ManifestError(f"{options.file}: {error}") from error
        for obj in rendered.objects:
            print("---\n" + to_yaml(obj), end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    from semipd_cli.embedded import Embedded, RunOptions  # validate and render need no HTTP client

    def say(line: str) -> None:
        print(f"{datetime.now():%H:%M:%S}  {line}", flush=True)

    embedded = Embedded(
        RunOptions(
            manifest=options.file,
            settings=tuple(options.settings),
            host=options.host,
            port=options.port,
            agent_port=options.agent_port,
            claims=options.claims,
            status_file=options.status_file,
            api_key_file=options.api_key_file,
            log_file=options.log_file,
            token_file=options.token_file,
        ),
        say,
    )
    try:
        return asyncio.run(embedded.run())
    except RunError as error:
        print(f"semipd run: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
