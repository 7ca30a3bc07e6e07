"""Sizes at which pictures of many proportions are trained: pure arithmetic, the same for the preview and for the trainers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RATIO_MAX = 2.5
Size = tuple[int, int]


@dataclass(frozen=True)
class Bucket:
    """Pictures of like proportions.

    Attributes:
        size: (width, height) at which they are trained.
        pictures: how many there are.
        enlarged: how many of them are smaller than that.
        cut: the largest part of a picture that does not fit and is cut off, 0 to 1.
    """

    size: Size
    pictures: int
    enlarged: int
    cut: float


def bucket_sizes(side: int, step: int) -> list[Size]:
    """List the sizes that pictures of the area side x side may take: multiples of `step`, at most 2.5 times as long as wide."""
    area, found = side * side, set()
    for width in range(step, int(side * RATIO_MAX) + 1, step):
        height = int(area / width // step * step)
        if height and max(width / height, height / width) <= RATIO_MAX:
            found |= {(width, height), (height, width)}
    exact = side // step * step
    return sorted(found | {(exact, exact)})


def bucket_of(size: Size, sizes: Sequence[Size]) -> Size:
    """Return the size whose proportions are nearest to a picture's; of equals the largest."""
    wanted = math.log(size[0] / size[1])
    return min(sizes, key=lambda one: (round(abs(math.log(one[0] / one[1]) - wanted), 9), -one[0] * one[1]))


def fill_buckets(pictures: Sequence[Size], sizes: Sequence[Size]) -> list[Bucket]:
    """Say how pictures of (width, height) spread over the sizes; the fullest first."""
    found: dict[Size, list[Size]] = {}
    for picture in pictures:
        found.setdefault(bucket_of(picture, sizes), []).append(picture)
    made = [
        Bucket(size, len(held), sum(is_enlarged(one, size) for one in held), max(cut_part(one, size) for one in held))
        for size, held in found.items()
    ]
    return sorted(made, key=lambda bucket: (-bucket.pictures, bucket.size))


def is_enlarged(picture: Size, size: Size) -> bool:
    """Whether a picture has fewer pixels on a side than the size at which it is trained."""
    return max(size[0] / picture[0], size[1] / picture[1]) > 1


def cut_part(picture: Size, size: Size) -> float:
    """Return the part of a picture that is cut off so that it covers a size, 0 to 1."""
    ratio, wanted = picture[0] / picture[1], size[0] / size[1]
    return 1 - min(ratio, wanted) / max(ratio, wanted)
