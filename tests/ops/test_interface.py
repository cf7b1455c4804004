"""The table of C functions against what csrc/ declares: names, order and types of parameters, results and codes."""

import ctypes
import re

import pytest
import torch

from convnext.errors import ConvnextError
from convnext.ops import build, interface
from convnext.ops.compile import DETECTION, SOURCES

SOURCE = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp") and path.stem != DETECTION
)
DECLARED = {
    name: (result, [parameter.strip() for parameter in parameters.split(",")] if parameters.strip() else [])
    for result, name, parameters in re.findall(r'extern "C" ([\w ]+?)\s*(\w+)\(([^)]*)\)', SOURCE)
}
RESULTS = {"int": ctypes.c_int, "int64_t": ctypes.c_int64}


def c_type(declared):
    """The ctypes type and the name of a parameter as C++ declares it."""
    kind, name = re.fullmatch(r"(.*?)(\w+)", declared, re.DOTALL).groups()
    if "*" in kind:
        return ctypes.c_void_p, name
    return {"int64_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float}[kind.strip()], name


def test_every_exported_function_is_in_the_table_and_no_other():
    assert len(DECLARED) > 10
    assert DECLARED.keys() == interface.FUNCTIONS.keys()


@pytest.mark.parametrize("name", interface.FUNCTIONS)
def test_a_function_has_the_declared_parameters_and_result(name):
    function, (result, parameters) = interface.FUNCTIONS[name], DECLARED[name]
    assert [(parameter.type, parameter.name) for parameter in function.parameters] == [c_type(parameter) for parameter in parameters]
    assert function.result is RESULTS[result]


def enum(*names):
    """The values of the C++ enum that begins with these names."""
    body = re.search(rf"enum \{{\s*({names[0]}\b[^}}]*)\}}", SOURCE).group(1)
    values, following = {}, 0
    for entry in body.split(","):
        name, _, value = (part.strip() for part in entry.partition("="))
        values[name] = int(value) if value else following
        following = values[name] + 1
    assert values.keys() == set(names)
    return values


def test_codes_are_those_of_the_source():
    dtypes = enum("FLOAT32", "BFLOAT16")
    assert {torch.float32: dtypes["FLOAT32"], torch.bfloat16: dtypes["BFLOAT16"]} == interface.DTYPES
    products = enum("PRODUCTS_FLOAT32", "PRODUCTS_BF16", "PRODUCTS_SPLIT")
    assert list(interface.PRODUCTS.values()) == list(products.values())
    codes = enum("OK", "OUT_OF_MEMORY", "UNSUPPORTED_KERNEL", "UNSUPPORTED_DTYPES", "NEEDS_TILES", "NEEDS_INT8")
    assert codes.pop("OK") == 0
    assert interface.FAILURES.keys() == set(codes.values())


def test_kernels_are_those_that_the_source_has_functions_for():
    assert set(re.findall(r"case (\d+): return", SOURCE)) == set(map(str, interface.KERNELS))


def test_codes_of_failures_are_decoded():
    build.check("block_forward", 0)
    for code, message in (
        (1, "ran out of memory: use a smaller batch"),
        (2, "has no kernel of this size: use one of 3, 5, 7, 9, 11"),
        (3, "combination of dtypes"),
        (4, "needs a CPU with AMX"),
        (7, "failed with code 7"),
    ):
        with pytest.raises(ConvnextError, match=f"block_forward .*{message}"):
            build.check("block_forward", code)


@pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
def test_a_call_with_other_arguments_is_refused():
    with pytest.raises(TypeError, match="use_threads takes 1 argument"):
        build.call("use_threads", threads=1, more=2)
    with pytest.raises(KeyError, match="threads"):
        build.call("use_threads", count=1)
    with pytest.raises(ctypes.ArgumentError):
        build.call("use_threads", threads=1.5)


@pytest.mark.skipif(build.library() is None, reason=f"no compiled operators here: {build.reason()}")
def test_operators_report_dtypes_and_products_that_they_do_not_support():
    x = torch.zeros(1, 1, 1, 16)
    sizes = {"n": 1, "height": 1, "width": 1, "channels": 16, "kernel": 3}
    with pytest.raises(ConvnextError, match="depthwise_forward does not support this combination of dtypes"):
        build.call(
            "depthwise_forward",
            x=x,
            taps=torch.zeros(3, 3, 16),
            bias=None,
            add=None,
            y=x.bfloat16(),
            dtype=x.dtype,
            y_dtype=torch.bfloat16,
            **sizes,
        )
    if not build.has_tiles():
        weight = torch.zeros(32, 32)
        with pytest.raises(ConvnextError, match="pack_weight needs a CPU with AMX"):
            build.call(
                "pack_weight",
                weight=weight, row_step=32, column_step=1, row_scale=None, column_scale=None, packed=weight.bfloat16(), n=32, k=32,
                products=interface.PRODUCTS[torch.bfloat16],
            )  # fmt: skip
