"""Which sizes training pictures take: buckets of one area and several proportions. Pure."""

import math
from collections.abc import Sequence

RATIO_MAX = 2.5


def bucket_sizes(side: int, step: int) -> list[tuple[int, int]]:
    """List the sizes that pictures of the area side x side may take: multiples of `step`, at most 2.5 times as long as wide."""
    area, found = side * side, set()
    for width in range(step, int(side * RATIO_MAX) + 1, step):
        height = int(area / width // step * step)
        if height and max(width / height, height / width) <= RATIO_MAX:
            found |= {(width, height), (height, width)}
    exact = side // step * step
    return sorted(found | {(exact, exact)})


def bucket_of(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the size whose proportions are nearest to a picture's; of equals the largest."""
    wanted = math.log(size[0] / size[1])
    return min(sizes, key=lambda one: (round(abs(math.log(one[0] / one[1]) - wanted), 9), -one[0] * one[1]))
