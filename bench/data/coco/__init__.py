"""COCO 2017, brought by the user: official folders in, a prepared folder out, and a data set over it.

Images of COCO are under the licences of their photographers on Flickr, annotations under CC BY 4.0
(https://cocodataset.org). Nothing of it is shipped.
"""

from __future__ import annotations

NAME = "coco17"
VARIABLE = "BENCH_COCO17"
TRAIN, VAL = "train2017", "val2017"
SETS = (TRAIN, VAL)
MANIFEST = "manifest.json"
SKIPPED = "skipped.json"
TABLES = "tables"
ATTRIBUTION = (
    "Captions and annotations: COCO 2017 (https://cocodataset.org), CC BY 4.0; images: Flickr users, "
    "each under the licence its COCO entry names."
)


def item_name(number: int) -> str:
    """Return the id of an item: COCO's image id in 12 digits, as in its file names."""
    return f"{number:012d}"
