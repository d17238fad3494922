"""``semipd-engine fetch``: brings a model's files to a folder, or says in one line of JSON why it cannot.

Runs in the pod's init container. The line goes to the termination log (and to standard error), where the operator reads
it: ``{"reason": ..., "message": ..., "bytes": ..., "revision": ...}``. Knows URIs and flags,
not the hub (`download`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from semipd_engine.hub.download import (
    Fetched,
    FetchError,
    Reason,
    check_folder,
    fetch_commit,
    fetch_revision,
    of_file_system,
)

EXIT_STATUS = {reason: status for status, reason in enumerate(Reason)} | {
    Reason.DOWNLOAD_FAILED: 1,
    Reason.INVALID_URI: 2,
    Reason.AUTH_REQUIRED: 3,
    Reason.NOT_FOUND: 4,
    Reason.NO_SPACE: 5,
    Reason.CHECKSUM_MISMATCH: 6,
    Reason.UNREACHABLE: 7,
    Reason.INCOMPLETE: 8,
    Reason.CACHE_NOT_WRITABLE: 9,
}


def fetch(uri: str, to: Path | None, revision: str = "", token: str | None = None) -> Fetched:
    """Make the model of `uri` available. Raises `FetchError`.

    ``hf://org/name[@revision]`` is downloaded to `to`. ``file:///path`` and ``pvc://claim[/folder]`` (mounted at `to`)
    are only checked.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "hf" and rest:
        name, _, pinned = rest.partition("@")
        if to is None:
            raise FetchError(Reason.INVALID_URI, f"{uri}: --to must name the folder to download to")
        return fetch_revision(name, revision or pinned or "main", to, token)
    if scheme == "file" and rest.startswith("/"):
        return check_folder(Path(rest))
    if scheme == "pvc" and rest:
        if to is None:
            raise FetchError(Reason.INVALID_URI, f"{uri}: --to must name the folder where the claim is mounted")
        return check_folder(to)
    wanted = "use hf://organisation/name[@revision], file:///folder or pvc://claim/folder"
    raise FetchError(Reason.INVALID_URI, f"{uri!r} is not a model URI; {wanted}")


def add_command(subparsers: Any) -> None:
    """Add ``fetch`` to the parser of ``semipd-engine``."""
    parser = subparsers.add_parser("fetch", help="bring a model to a folder", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("uri", nargs="?", default=argparse.SUPPRESS, help="hf://, file:// or pvc:// URI")
    source.add_argument("--uri", dest="uri", default=argparse.SUPPRESS, help="the same as a flag")
    parser.add_argument("--to", "--out", dest="to", type=Path, help="folder for the files")
    parser.add_argument(
        "--cache", type=Path, help="instead of --to: folder with a folder for each commit of a hf:// model"
    )
    parser.add_argument("--link", type=Path, help="with --cache: symbolic link to make to the commit's folder")
    parser.add_argument("--pin-file", type=Path, help="with --cache: file that may hold the commit to take")
    parser.add_argument("--revision", default="", help="branch, tag or commit; default main")
    parser.add_argument("--token-file", type=Path, help="file with a hub token; default: the variable HF_TOKEN")
    parser.add_argument(
        "--termination-log", type=Path, default=Path("/dev/termination-log"), help="file for the result"
    )
    parser.set_defaults(func=run)


def _fetch_as_told(arguments: argparse.Namespace, token: str | None) -> Fetched:
    if arguments.cache is None:
        return fetch(arguments.uri, arguments.to, arguments.revision, token)
    scheme, _, name = arguments.uri.partition("://")
    if scheme != "hf" or arguments.to is not None:
        raise FetchError(
            Reason.INVALID_URI, f"{arguments.uri}: --cache is for hf:// models, and takes the place of --to"
        )
    file: Path | None = arguments.pin_file
    pinned = file.read_text().strip() if file and file.is_file() else ""
    fetched = fetch_commit(name, arguments.cache, arguments.revision, pinned, token)
    if arguments.link:
        arguments.link.unlink(missing_ok=True)
        arguments.link.symlink_to(fetched.directory.absolute())
    return fetched


def run(arguments: argparse.Namespace) -> int:
    """Fetch, report in one line, return the exit status."""
    token = None
    try:
        token = arguments.token_file.read_text().strip() if arguments.token_file else None
        fetched = _fetch_as_told(arguments, token)
        reason, message = Reason.FETCHED, fetched.note or f"the model is in {fetched.directory}"
        size, revision = fetched.bytes, fetched.revision
    except FetchError as error:
        reason, message, size, revision = error.reason, str(error), 0, arguments.revision
    except OSError as error:
        reason, message = of_file_system(error) or Reason.DOWNLOAD_FAILED, str(error)
        size, revision = 0, arguments.revision
    said = {"reason": reason, "message": message[:2000], "bytes": size, "revision": revision}
    line = json.dumps(said, ensure_ascii=False)
    for secret in filter(None, (token, os.environ.get("HF_TOKEN"))):
        line = line.replace(secret, "***")  # whoever may read the service reads it
    print(line, file=sys.stderr)
    if arguments.termination_log.exists() or arguments.termination_log.parent != Path("/dev"):
        arguments.termination_log.write_text(line + "\n")
    return EXIT_STATUS[reason]


def main() -> int:
    """``python -m semipd_engine.hub.fetch``, the same command by itself."""
    parser = argparse.ArgumentParser(prog="semipd-engine")
    add_command(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["fetch", *sys.argv[1:]])
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
