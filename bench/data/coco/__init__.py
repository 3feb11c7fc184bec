"""COCO 2017, brought by the user: official folders in, a prepared folder out, and a data set over it.

Images of COCO are under the licences of their photographers on Flickr, annotations under CC BY 4.0
(https://cocodataset.org). Nothing of it is shipped.
"""

NAME = "coco17"
TRAIN, VAL = "train2017", "val2017"
SETS = (TRAIN, VAL)
MANIFEST = "manifest.json"
SKIPPED = "skipped.json"
