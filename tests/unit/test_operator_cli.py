"""``semipd validate`` and ``render``, the refusals of ``semipd run``, and the operator's own flags."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from semipd_cli.__main__ import command
from semipd_operator.__main__ import parse
from semipd_operator.settings import SettingsError

pytestmark = pytest.mark.unit
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GOOD = "apiVersion: semipd.io/v1alpha1\nkind: SemiPDService\nmetadata: {name: x}\nspec: {model: {uri: 'file:///m'}}\n"


def test_validate_good(capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(EXAMPLES.glob("*.yaml"))
    assert command(["validate", *(word for path in paths for word in ("-f", str(path)))]) == 0
    assert capsys.readouterr().out.count(": ok") == len(paths) >= 4


def test_validate_bad_is_one_line_for_each_error(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "validate",
        "-f",
        str(EXAMPLES / "cpu.yaml"),
        "--set",
        "partition.prefillPercent=0",
        "--set",
        "replicas=-1",
    ]
    assert command(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{EXAMPLES / 'cpu.yaml'}: smollm2: spec.") for line in lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("a: [", "no YAML"),
        ("kind: Pod", "holds no SemiPDService"),
        (GOOD.replace("kind: SemiPDService", "kind: SemiPDService\nextra: 1"), "unknown field"),
        (GOOD.replace("v1alpha1", "v2"), "apiVersion"),
        (GOOD.replace("{name: x}", "{}"), "metadata.name"),
    ],
)
def test_files_that_cannot_be_used(
    text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.yaml"
    if text is not None:
        path.write_text(text)
    assert command(["validate", "-f", str(path)]) == 1
    error = capsys.readouterr().err
    assert says in error and str(path) in error and len(error.splitlines()) == 1


def test_render_prints_objects_that_obey_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["render", "-f", str(EXAMPLES / "gpu.yaml"), "-n", "team", "--engine-image", "e:1"]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    assert {obj["kind"] for obj in objects} == {"ConfigMap", "Service", "Deployment", "PodMonitor"}
    assert {obj["metadata"]["namespace"] for obj in objects} == {"team"}
    assert '"tokenSha256": []' in objects[0]["data"]["agent.json"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([], "pvc://models/smollm2-135m-instruct: without Kubernetes"),
        (["model.uri=file:///nowhere/at/all"], "file:///nowhere/at/all"),
        (["model.uri=file:///tmp", "replicas=2"], "replicas must be 1"),
        (["model.uri=file:///tmp", "service.apiKeySecretRef.name=s"], "use --api-key-file FILE"),
        (["model.uri"], "write it like"),
        (["partition.prefillPercent=["], "no YAML"),
    ],
)
def test_run_refuses_what_it_cannot_do(
    settings: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "-f", str(EXAMPLES / "cpu.yaml"), "--claims", str(tmp_path)]
    assert command([*arguments, *(word for s in settings for word in ("--set", s))]) == 1
    assert says in capsys.readouterr().err


def test_operator_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    monkeypatch.setenv("SEMIPD_OPERATOR_ENGINE_IMAGE", "e:1")
    settings, level = parse(["--key-file", str(key), "--namespace", "a", "--namespace", "b", "--log-level", "debug"])
    assert (settings.engine_image, settings.namespaces, level) == ("e:1", ("a", "b"), "debug")
    assert settings.key == b"0123456789abcdef" and "0123456789abcdef" not in repr(settings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine-image", "e"], "--key-file is not set"),
        (["--key-file", "/nowhere"], "--engine-image is not set"),
        (["--engine-image", "e", "--key-file", "/nowhere"], "mount the chart's Secret"),
        (["--engine-image", "e", "--key-file", "/dev/null"], "at least 16"),
        (["--engine-image", "e", "--log-level", "loud"], "one of debug, info, warning, error"),
    ],
)
def test_operator_flags_that_are_wrong(arguments: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse(arguments)
