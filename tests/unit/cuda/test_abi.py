"""What we say of the driver's functions, structures and numbers is what NVIDIA's own header says.

A C++ compiler reads the header and prints the kind and the size of each parameter; the ctypes signatures must match.
"""

from __future__ import annotations

import ast
import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import pynvml
import pytest
from tests.unit.cuda.headers import PACKAGES, compile_cpp

from semipd_agent.gpu import telemetry
from semipd_agent.partitioner.mps import probe, prober
from semipd_engine.green import driver as green
from semipd_engine.green import hold
from semipd_engine.memory import driver

pytestmark = pytest.mark.unit

SIGNATURES = {**driver.SIGNATURES, **probe.SIGNATURES, **green.SIGNATURES, **hold.SIGNATURES}
CONSTANTS = {
    "CU_IPC_HANDLE_SIZE": driver.HANDLE_BYTES,
    "CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS": driver.LAZY_ENABLE_PEER_ACCESS,
    "CUDA_ERROR_OUT_OF_MEMORY": driver.OUT_OF_MEMORY,
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": probe.MULTIPROCESSOR_COUNT,
    "CUDA_SUCCESS": 0,
    "int(offsetof(CUipcMemHandle, reserved))": driver.IpcHandle.reserved.offset,
    "int(alignof(CUipcMemHandle))": ctypes.alignment(driver.IpcHandle),
    "CU_DEV_RESOURCE_TYPE_SM": green.SM,
    "CU_GREEN_CTX_DEFAULT_STREAM": green.DEFAULT_STREAM,
    "CU_STREAM_NON_BLOCKING": green.NON_BLOCKING,
    "CUDA_ERROR_NOT_SUPPORTED": green.NOT_SUPPORTED,
    "int(offsetof(CUdevResource, sm.smCount))": green.Resource.sm_count.offset,
    "int(offsetof(CUdevResource, sm.minSmPartitionSize))": green.Resource.least.offset,
    "CU_MEMHOSTALLOC_PORTABLE": hold.PORTABLE,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": hold.SHARED_PER_BLOCK,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": hold.SHARED_PER_SM,
    "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": hold.DYNAMIC_SHARED,
}
ALSO = {"CUDA_ERROR_OUT_OF_MEMORY": prober.OUT_OF_MEMORY}
PRINTER = r"""
#include <cuda.h>
#include <cstddef>
#include <cstdio>
#include <type_traits>
template <class T, class = void> constexpr size_t size = 0;
template <class T> constexpr size_t size<T, std::void_t<decltype(sizeof(T))>> = sizeof(T);
template <class T> void kind() {
    if constexpr (std::is_pointer_v<T>) { printf("*"); kind<std::remove_cv_t<std::remove_pointer_t<T>>>(); }
    else if constexpr (std::is_same_v<T, char>) printf("char");
    else if constexpr (std::is_enum_v<T>) printf("enum%zu", size<T>);
    else if constexpr (std::is_integral_v<T>) printf("%s%zu", std::is_signed_v<T> ? "int" : "uint", size<T>);
    else if constexpr (size<T> > 0) printf("struct%zu", size<T>);
    else printf("opaque");
}
template <class R, class... A> void signature(const char *name, R (*)(A...)) {
    printf("\"%s\": [\"", name);
    kind<R>();
    ((printf("\", \""), kind<A>()), ...);
    printf("\"],\n");
}
template <class R, class... A> using F = R (*)(A...);
"""


@pytest.fixture(scope="module", params=PACKAGES)
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("abi")
    # A null pointer of the function's type: nothing is linked.
    lines = [f'signature("{name}", static_cast<decltype(&{name})>(nullptr));' for name in SIGNATURES]
    lines += [f'printf("\\"{name}\\": %d,\\n", static_cast<int>({name}));' for name in CONSTANTS]
    body = "\n    ".join(lines)
    source = folder / "abi.cpp"
    source.write_text(f'{PRINTER}int main() {{\n    puts("{{");\n    {body}\n    puts("\\"\\": 0}}");\n}}\n')
    program = compile_cpp(source, folder / "abi", str(request.param))
    return dict(json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout))


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_nvidias(said: dict[str, Any], name: str) -> None:
    result, *parameters = said[name]
    assert result == "enum4", "a CUresult"
    mine = [kinds(parameter) for parameter in SIGNATURES[name]]
    assert len(parameters) == len(mine)
    for theirs, allowed in zip(parameters, mine, strict=True):
        assert theirs in allowed, f"{name}: NVIDIA says {theirs}, we {allowed}"


def test_numbers_are_nvidias(said: dict[str, Any]) -> None:
    assert {name: said[name] for name in CONSTANTS} == CONSTANTS
    assert {name: said[name] for name in ALSO} == ALSO


def kinds(mine: Any) -> set[str]:
    """What the header may say of a parameter that we declare so."""
    if mine is ctypes.c_void_p:
        return {"*opaque"}
    if mine is ctypes.c_char_p:
        return {"*char"}
    if hasattr(mine, "contents"):
        return {f"*{kind}" for kind in kinds(mine._type_)}
    size = ctypes.sizeof(mine)
    if issubclass(mine, ctypes.Structure):
        return {f"struct{size}"}
    signed = mine(-1).value == -1
    return {f"{'int' if signed else 'uint'}{size}"} | ({"enum4"} if size == 4 else set())


def test_every_call_that_is_made_has_a_signature() -> None:
    for module, table in (
        (driver, driver.SIGNATURES),
        (probe, probe.SIGNATURES),
        (green, green.SIGNATURES),
        (hold, hold.SIGNATURES),
    ):
        text = Path(str(module.__file__)).read_text()
        words = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
        words |= {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
        calls = {word for word in words if isinstance(word, str) and word.startswith("cu") and word[2:3].isupper()}
        assert calls == set(table)


def test_what_is_asked_of_nvml_is_in_nvidias_own_binding() -> None:
    """The tests of telemetry run on a stand-in: the real package must have every name, and the numbers."""
    tree = ast.parse(Path(str(telemetry.__file__)).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pynvml"
    } | {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and str(node.value).startswith("nvmlD")
    }
    assert used and not [name for name in used if not hasattr(pynvml, str(name))]
    modes = {
        pynvml.NVML_COMPUTEMODE_DEFAULT: telemetry.ComputeMode.DEFAULT,
        pynvml.NVML_COMPUTEMODE_PROHIBITED: telemetry.ComputeMode.PROHIBITED,
        pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: telemetry.ComputeMode.EXCLUSIVE_PROCESS,
    }
    assert modes == telemetry._COMPUTE_MODES
