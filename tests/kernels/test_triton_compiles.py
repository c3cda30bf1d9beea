"""Every Triton kernel compiles for the GPUs it is meant for; no GPU is needed.

A module of them is named *_triton.py, and lists in COMPILED what it launches: (function, types of
arguments, constexprs and options).
"""

import importlib
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import mixc_kernels
import pytest

MODULES = sorted(path.stem for path in Path(mixc_kernels.__path__[0]).glob("*_triton.py"))
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}


def kernels():
    if importlib.util.find_spec("triton") is None:
        return [pytest.param(None, marks=pytest.mark.skip("Triton is not installed"))]
    if os.environ.get("TRITON_INTERPRET") == "1":
        return [pytest.param(None, marks=pytest.mark.skip("TRITON_INTERPRET is set"))]
    return [
        pytest.param(kernel, id=f"{name}-{i}")
        for name in MODULES
        for i, kernel in enumerate(importlib.import_module(f"mixc_kernels.{name}").COMPILED)
    ]


def compile_for(capability, function, signature, given):
    """An entry of COMPILED for sm_`capability`; `given` are constexprs and options of launches.

    Types that end in ":16" are of addresses or numbers divisible by 16, as launches find them.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: given[name] for name in OPTIONS if name in given}
    constants = {name: value for name, value in given.items() if name not in options}
    types = {name: kind.removesuffix(":16") for name, kind in signature.items()}
    divisible = {
        (function.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind != types[name]
    }
    source = ASTSource(function, types, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled_bytes(cubin):
    """What each thread keeps in memory for want of registers, by the cuobjdump beside Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True)
    return max(int(size) for size in re.findall(r"STACK:(\d+)", done.stdout))


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("kernel", kernels())
def test_a_kernel_compiles_and_fits(kernel, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compiled = compile_for(capability, *kernel)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
    assert spilled_bytes(tmp_path / "cubin") == 0
