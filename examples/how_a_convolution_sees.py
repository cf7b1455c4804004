"""Print the numbers and draw the figures of docs/how-a-convolution-sees.md.

python examples/how_a_convolution_sees.py                   # print the grids
python examples/how_a_convolution_sees.py RUN docs/images   # draw the figures too, from a run of `convnext demo`
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

LOOP = torch.tensor([[1, 1, 1], [1, -1, 1], [1, 1, 1]])  # ink all around an empty pixel
MAX_RESPONSE = 8  # a whole loop

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
    """Return a drawn digit (height, width): 1 where there is ink, else 0."""
    return torch.tensor([[int(cell == "#") for cell in line.strip()] for line in DIGITS[name].split()])


def responses(image: Tensor, kernel: Tensor = LOOP) -> Tensor:
    """Return the response of the kernel at each position inside the image (height - 2, width - 2)."""
    return F.conv2d(image[None, None].float(), kernel[None, None].float())[0, 0].long()


def loops(name: str) -> list[tuple[int, int]]:
    """Return row and column in the drawing, from 0, of the middle of each loop."""
    return [(row + 1, column + 1) for row, column in (responses(grid(name)) == MAX_RESPONSE).nonzero().tolist()]


def as_text(values: Tensor) -> str:
    """Return the values as rows of right-aligned numbers."""
    return "\n".join(" ".join(f"{value:2d}" for value in row) for row in values.tolist())


def print_grids() -> None:
    """Print each drawing with its responses and loops."""
    for name in DIGITS:
        print(f"{name}, drawn:\n{as_text(grid(name))}\nresponse:\n{as_text(responses(grid(name)))}")
        print(f"loops around (row, column): {', '.join(map(str, loops(name)))}\n")


def grey_filters(run: Path) -> Tensor:
    """Return the first-layer filters of a run as they act on grey images (channels, 4, 4), strongest first."""
    import convnext

    predictor = convnext.load(run, device="cpu")
    weight = predictor.model.downsample_layers[0][0].weight.detach()  # (channels, 3, 4, 4)
    # In a grey image red, green and blue are equal; preprocessing divides each by its standard deviation.
    filters = (weight / torch.tensor(predictor.preprocessing.std)[:, None, None]).sum(1)
    return filters[filters.square().sum((1, 2)).argsort(descending=True)]


def first_layer(run: Path, path: Path) -> None:
    """Draw the first-layer filters of a run: dark blue at the lowest weight, yellow at the highest."""
    from convnext.explain.feature_maps import drawn
    from convnext.report.sheets import SheetRow, sheet

    filters = grey_filters(run)
    tiles = [(drawn(one), f"{one.min():.2f} to {one.max():.2f}") for one in filters]
    title = f"{len(tiles)} filters of {filters.shape[1]} x {filters.shape[2]}, the strongest first"
    sheet([SheetRow(title if start == 0 else "", tiles[start : start + 8]) for start in range(0, len(tiles), 8)], side=88).save(path)


def activation_maps(run: Path, path: Path) -> None:
    """Draw the activation map and the strongest first-stage channels of held-out digits with and without loops."""
    import convnext
    from convnext.data.sources.open import open_source
    from convnext.explain.activation_maps import laid_over
    from convnext.explain.feature_maps import drawn, stage_maps, strongest
    from convnext.report.sheets import SheetRow, sheet

    predictor, source = convnext.load(run, device="cpu"), open_source("digits:val")
    rows = []
    for digit in "9681":
        image = source.read(next(i for i in range(len(source)) if source.classes[source.label(i)] == digit))
        (name, probability), maps = predictor(image).top(1)[0], stage_maps(predictor, image)[0]
        tiles = [(image, "the image"), (laid_over(predictor, image, name), f"evidence for {name}")]
        tiles += [(drawn(maps[i]), f"stage 1, channel {i}") for i in strongest(maps, 5)]
        rows.append(SheetRow(f"a written {digit}, predicted {name} ({probability:.1%})", tiles))
    sheet(rows).save(path)


def main() -> None:
    """Print the grids and, given a run and a folder, draw the figures."""
    print_grids()
    if len(sys.argv) == 3:
        run, folder = Path(sys.argv[1]), Path(sys.argv[2])
        first_layer(run, folder / "first_layer.png")
        activation_maps(run, folder / "activation_maps.png")


if __name__ == "__main__":
    main()
