"""What the commands of README and docs/quickstart.md ask of each program: what a run alone cannot tell.

Another image that is loaded beside, another patience, a condition that comes sooner or a few tokens more look the same
in what is printed. So each block is run by a real shell on stand-ins that note their arguments. That these commands do
what the page says is proved by tests/engine/test_quickstart.py and e2e/tests/test_quickstart.py.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from e2e.lib.pages import Block, Shell, blocks, pictures

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text()
README = (ROOT / "README.md").read_text()
VERSION = yaml.safe_load((ROOT / "charts" / "semipd-operator" / "Chart.yaml").read_text())["version"]
REGISTRY, ADDRESS = "registry.example/team", "10.96.0.7"
URL = "http://127.0.0.1:8000"
QUESTION = """{"model": "smollm2-135m-instruct", "temperature": 0, "messages":
    [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]}"""
PROMPT = '{"model": "smollm2-135m-instruct", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}'
JSON = "--header 'Content-Type: application/json'"
ASKED = f"""
git clone https://github.com/semipd/semipd.git
make venv
make model
.venv/bin/semipd run -f examples/cpu.yaml
curl -sS --fail-with-body {URL}/v1/chat/completions {JSON} --data {shlex.quote(QUESTION)}
sed -i 's/prefillPercent: 50/prefillPercent: 80/' examples/cpu.yaml
grep Percent examples/cpu.yaml
curl -sS --fail-with-body {URL}/metrics
grep 'partition_percent{{.*in_force'
make tools
hack/cluster/cluster up
hack/cluster/tools path
make images REGISTRY={REGISTRY}
helm package charts/semipd-operator --destination out
helm push out/semipd-operator-{VERSION}.tgz oci://{REGISTRY}/charts
hack/cluster/cluster load localhost/semipd/engine:dev
hack/cluster/cluster exec -- bash
helm install semipd oci://{REGISTRY}/charts/semipd-operator --version {VERSION} \
  --namespace semipd-system --create-namespace --wait \
  --set image.repository={REGISTRY}/operator --set image.tag=dev \
  --set engine.image.repository={REGISTRY}/engine --set engine.image.tag=dev
kubectl get pods --namespace semipd-system
kubectl apply -f -
sed 's|TREE|FOLDER/semipd|' examples/local/models.yaml
kubectl apply -f examples/cpu.yaml
kubectl wait --for=condition=Ready spd/smollm2 --timeout=180s
kubectl get spd
curl -sS --fail-with-body http://{ADDRESS}:8000/v1/completions {JSON} --data {shlex.quote(PROMPT)}
kubectl get service smollm2 -o 'jsonpath={{.spec.clusterIP}}'
kubectl patch spd smollm2 --type merge --patch \
  '{{"spec": {{"partition": {{"prefillPercent": 30, "decodePercent": 90}}}}}}'
kubectl get spd smollm2
kubectl describe spd smollm2
kubectl delete spd smollm2
helm uninstall semipd --namespace semipd-system
kubectl get pods --namespace semipd-system
hack/cluster/cluster down
"""
"""Calls in the order of the page; those of one command (a pipe's, a substitution's) by the alphabet."""

STAND_IN = f"""#!/bin/sh
case "$0" in /*) name=${{0##*/}};; *) name=$0;; esac
{{ printf '%s' "$name"; printf '\\037%s' "$@"; }} >"$NOTES/$$"
case "$name $*" in
  "git "*) ;;
  *) [ "${{PWD##*/}}" = semipd ] || {{ echo "$name is called in $PWD" >&2; exit 9; }};;
esac
case "$name $*" in
  "hack/cluster/tools path") echo "$STAND_INS/tools";;
  "kubectl get service "*) echo {ADDRESS};;
  "hack/cluster/cluster exec -- bash") exec bash --noprofile --norc;;
esac
"""


def stand_ins(folder: Path) -> dict[str, str]:
    """An environment whose programs are stand-ins, and the folder that `git clone` would make."""
    tree, programs, notes = folder / "semipd", folder / "programs", folder / "notes"
    notes.mkdir()
    in_path = [programs / name for name in ("git", "make", "curl", "sed", "grep", "tools/kubectl", "tools/helm")]
    for file in [
        *in_path,
        *(tree / name for name in (".venv/bin/semipd", "hack/cluster/cluster", "hack/cluster/tools")),
    ]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(STAND_IN)
        file.chmod(0o755)
    path = f"{programs}:/usr/bin:/bin"
    nowhere = {"KUBECONFIG": str(folder / "none"), "HOME": str(folder)}  # should a real program be called after all
    return {"PATH": path, "NOTES": str(notes), "STAND_INS": str(programs), "REGISTRY": REGISTRY, **nowhere}


def calls(shell: Shell, block: Block, folder: Path) -> list[list[str]]:
    """What the block's commands ask. Raises `PageError` for one that fails."""
    found: list[list[str]] = []
    for command in block.split():
        shell.run(Block(block.line, command), 60)
        notes = list((folder / "notes").iterdir())
        found += sorted(note.read_text().split("\037") for note in notes)
        for note in notes:
            note.unlink()
    return found


def test_the_quick_start_asks_each_program_for_what_it_is_to_do(tmp_path: Path) -> None:
    expected = ASKED.replace("FOLDER", str(tmp_path)).replace("\\\n", "").strip()
    wanted = list(map(shlex.split, Block(0, expected).split()))
    with Shell(tmp_path, stand_ins(tmp_path)) as shell:
        for block in blocks(PAGE):
            made = calls(shell, block, tmp_path)
            assert made == wanted[: len(made)], f"line {block.line}"
            del wanted[: len(made)]
    assert wanted == []


CHANGES = [
    *(("=condition=Ready", "=condition=SpecAccepted"), ("=180s", "=18s"), ("semipd/engine:dev", "semipd/operator:dev")),
    *(("/metrics ", "/metric "), ('"max_tokens": 4', '"max_tokens": 9'), (', "temperature": 0}', "}")),
    *((".spec.clusterIP}", ".spec.clusterIPs[0]}"), ("}'):8000/v1", "}'):8001/v1"), ("tag=dev", "tag=latest")),
    *((f" --version {VERSION}", ""), ("--namespace semipd-system", "--namespace semipd"), ("|$PWD|", "|.|")),
    *(("make venv\nmake model", "make model\nmake venv"), ("delete spd smollm2", "delete spd --all"), (" --wait", "")),
    *(
        ("--type merge", "--type json"),
        ("in_force", "requested"),
        ('"oci://$REGISTRY/charts"', "'oci://$REGISTRY/charts'"),
    ),
]
"""Some that a run did not see."""


def test_other_commands_ask_for_something_else(tmp_path: Path) -> None:
    env = stand_ins(tmp_path)
    with Shell(tmp_path / "semipd", env | {"PATH": f"{env['STAND_INS']}/tools:{env['PATH']}"}) as shell:
        for old, new in CHANGES:
            block = next(block for block in blocks(PAGE) if old in block.commands)
            changed = replace(block, commands=block.commands.replace(old, new, 1).replace("cd semipd\n", ""))
            original = replace(block, commands=block.commands.replace("cd semipd\n", ""))
            assert calls(shell, changed, tmp_path) != calls(shell, original, tmp_path), (old, new)


def test_the_readme_shows_blocks_of_the_quick_start_and_nothing_else() -> None:
    known = [block.commands for block in blocks(PAGE)]
    shown = [block.commands for block in blocks(README)]
    for commands in shown:
        assert commands in known, f"README.md: this block is run by no test:\n{commands}"
    places = [known.index(commands) for commands in shown]
    assert places == sorted(places) and len(places) >= 4, "in the order in which they are run"


@pytest.mark.parametrize("page", [README, PAGE], ids=["README.md", "quickstart.md"])
def test_a_picture_holds_no_command(page: str) -> None:
    """A command block that lost its language would be run by nobody."""
    programs = {command.split()[0] for block in blocks(PAGE) for command in block.split()}
    begun = {line.split(" ")[0] for picture in pictures(page) for line in picture.splitlines() if line}
    assert not begun & programs
