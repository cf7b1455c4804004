"""How a convolution sees: the numbers and figures of docs/how-a-convolution-sees.md.

python examples/how_a_convolution_sees.py                   # the grids
python examples/how_a_convolution_sees.py RUN docs/images   # the figures too, of a run of `convnext demo`
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

LOOP = torch.tensor([[1, 1, 1], [1, -1, 1], [1, 1, 1]])  # ink all round and none in the middle
MOST = 8  # its highest response: a whole loop

DIGITS = {
    "9": """
        .....
        .###.
        .#.#.
        .###.
        ...#.
        ...#.
        .....""",
    "6": """
        .....
        .#...
        .#...
        .###.
        .#.#.
        .###.
        .....""",
    "8": """
        .....
        .###.
        .#.#.
        .###.
        .#.#.
        .###.
        .....""",
    "96": """
        .........
        .###.#...
        .#.#.#...
        .###.###.
        ...#.#.#.
        ...#.###.
        .........""",
}


def grid(name: str) -> Tensor:
    """A drawn digit as ones, where there is ink, and zeros (height, width)."""
    return torch.tensor([[int(cell == "#") for cell in line.strip()] for line in DIGITS[name].split()])


def responses(image: Tensor, kernel: Tensor = LOOP) -> Tensor:
    """What the kernel answers at each position of the image (height, width): 2 fewer a side, for it must lie inside."""
    return F.conv2d(image[None, None].float(), kernel[None, None].float())[0, 0].long()


def loops(name: str) -> list[tuple[int, int]]:
    """Row and column in the drawing, from 0, of the middle of each loop that is found."""
    return [(row + 1, column + 1) for row, column in (responses(grid(name)) == MOST).nonzero().tolist()]


def as_text(values: Tensor) -> str:
    """Rows of right-aligned numbers."""
    return "\n".join(" ".join(f"{value:2d}" for value in row) for row in values.tolist())


def print_grids() -> None:
    """Each drawing with its responses and the loops found in it."""
    for name in DIGITS:
        print(f"{name}, drawn:\n{as_text(grid(name))}\nanswered:\n{as_text(responses(grid(name)))}")
        print(f"loops around (row, column): {', '.join(map(str, loops(name)))}\n")


def grey_filters(run: Path) -> Tensor:
    """The run's first-layer filters as they act on grey images (channels, 4, 4), the strongest first."""
    import convnext

    predictor = convnext.load(run, device="cpu")
    weight = predictor.model.downsample_layers[0][0].weight.detach()  # (channels, 3, 4, 4)
    # Red, green and blue are one in a grey image, each divided by its standard deviation beforehand.
    filters = (weight / torch.tensor(predictor.preprocessing.std)[:, None, None]).sum(1)
    return filters[filters.square().sum((1, 2)).argsort(descending=True)]


def first_layer(run: Path, path: Path) -> None:
    """Draw the run's first-layer filters: dark blue where they are lowest, yellow where highest."""
    from convnext.explain.feature_maps import drawn
    from convnext.report.sheets import Row, sheet

    filters = grey_filters(run)
    tiles = [(drawn(one), f"{one.min():.2f} to {one.max():.2f}") for one in filters]
    title = f"{len(tiles)} filters of {filters.shape[1]} x {filters.shape[2]}, the strongest first"
    sheet([Row(title if start == 0 else "", tiles[start : start + 8]) for start in range(0, len(tiles), 8)], side=88).save(path)


def activation_maps(run: Path, path: Path) -> None:
    """Draw, of held-out digits with loops and without, what speaks for the answer and the strongest first-stage channels."""
    import convnext
    from convnext.data.sources.open import open_source
    from convnext.explain.activation_maps import laid_over
    from convnext.explain.feature_maps import drawn, stage_maps, strongest
    from convnext.report.sheets import Row, sheet

    predictor, source = convnext.load(run, device="cpu"), open_source("digits:val")
    rows = []
    for digit in "9681":
        image = source.read(next(i for i in range(len(source)) if source.classes[source.label(i)] == digit))
        (name, probability), maps = predictor(image).top(1)[0], stage_maps(predictor, image)[0]
        tiles = [(image, "the image"), (laid_over(predictor, image, name), f"what speaks for {name}")]
        tiles += [(drawn(maps[i]), f"stage 1, channel {i}") for i in strongest(maps, 5)]
        rows.append(Row(f"a written {digit}, taken for {name} ({probability:.1%})", tiles))
    sheet(rows).save(path)


def main() -> None:
    """Print the grids and, with a run and a folder, draw the figures."""
    print_grids()
    if len(sys.argv) == 3:
        run, folder = Path(sys.argv[1]), Path(sys.argv[2])
        first_layer(run, folder / "first_layer.png")
        activation_maps(run, folder / "activation_maps.png")


if __name__ == "__main__":
    main()
