"""Print which part of a network's time GRN takes: ConvNeXt V2 beside the same network without GRN, on this machine's CPU.

    python benchmarks/grn.py [--models convnextv2_tiny,convnextv2_atto] [--batches 1,8] [--rounds 15]

Each network runs in three ways: by PyTorch alone, by the fast operators, and through `convnext.optimize`. All take turns in one process,
with and without GRN one after the other, so that drift of the machine affects both alike. The table has medians over the rounds, in
milliseconds of wall time and of CPU time (of all threads, waiting included), and GRN's share of each, 1 - without / with. Float32, 224
pixels. On a busy machine compare CPU time, with one thread (OMP_NUM_THREADS=1): wall time then measures the other work too.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from contestant import random_images
from torch import Tensor, nn

import convnext
from convnext import ops

Times = tuple[float, float]  # wall time and CPU time of a call, seconds


def networks(name: str) -> list[nn.Module]:
    """Return the network `name` and the same without GRN, with random weights under which each part matters."""
    found = []
    for grn in (True, False):
        torch.manual_seed(0)
        model = convnext.create_model(name, grn=grn).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.normal_(1.0, 0.3)
        found.append(model)
    return found


def ways(name: str, x: Tensor) -> dict[str, list[Callable[[], object]]]:
    """Return, for each way to run the network, the function that passes x through it with GRN, and the one without."""
    models = networks(name)
    optimized = [convnext.optimize(model, "float32") for model in models]

    def through(model: nn.Module, fast: bool) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode(), ops.using(fast):
                return model(x)

        return run

    return {
        "PyTorch": [through(model, False) for model in models],
        "fast operators": [through(model, True) for model in models],
        "optimize": [through(model, True) for model in optimized],
    }


def timed(run: Callable[[], object]) -> Times:
    """Return how long a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, batch: int, rounds: int) -> None:
    """Print the rows of a network with that batch."""
    runs = ways(name, random_images(batch))
    taken: dict[str, list[list[Times]]] = {way: [[], []] for way in runs}
    for number in range(rounds + 1):
        for way, pair in runs.items():
            for run, times in zip(pair, taken[way], strict=True):
                times.append(timed(run))
                if not number:
                    times.clear()  # the first call packs, wakes threads and fills the caches
    for way, pair_of_times in taken.items():
        columns = []
        for clock in (0, 1):
            with_grn, without = (statistics.median(times[clock] for times in one) for one in pair_of_times)
            columns.append(f"{1e3 * with_grn:.1f} | {1e3 * without:.1f} | {100 * (1 - without / with_grn):.1f} %")
        print(f"| {name} | {batch} | {way} | {' | '.join(columns)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="convnextv2_tiny,convnextv2_atto")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("| network | batch | way | wall, ms | without GRN | share of GRN | CPU, ms | without GRN | share of GRN |")
    print("| --- " * 9 + "|")
    for name in given.models.split(","):
        for batch in given.batches.split(","):
            measure(name, int(batch), given.rounds)


if __name__ == "__main__":
    main()
