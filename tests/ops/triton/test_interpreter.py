"""One small case of each kernel under Triton's interpreter, in one process. The test files of the kernels run all cases, and are slow."""

from pathlib import Path

from ops.triton_tools import outside, run_under_interpreter


@outside
def test_a_small_case_of_each_kernel():
    folder = Path(__file__).parent
    run_under_interpreter(*(folder / f"test_{name}.py" for name in ("depthwise", "norm", "mlp", "block")), select="test_a_small_case")
