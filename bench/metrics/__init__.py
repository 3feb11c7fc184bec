"""Metrics, one file a kind: the mathematics beside what tables call it.

Those of a task's condition lie in `lines` and `regions`, and tasks name them.
"""

from bench.metrics.frechet import FD, FD_INFINITE
from bench.metrics.kernel import CMMD, KID
from bench.metrics.neighbours import NEARER_TRAINING, NEIGHBOURS
from bench.metrics.paired import CLIP, COSINE, MAE, RETRIEVAL

OF_SETS = (FD, KID, FD_INFINITE, NEIGHBOURS, CMMD)
OF_ITEMS = (COSINE, RETRIEVAL, MAE, NEARER_TRAINING, CLIP)
SPECS = (*(spec for metric in OF_SETS for spec in metric.specs), *(metric.spec for metric in OF_ITEMS))
