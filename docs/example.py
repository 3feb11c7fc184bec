"""Compare two methods on sketches from Python: about two minutes on a laptop."""

import bench
from bench.cli.terminal import say

for method in ("bps", "text-only"):
    bench.run(method=method, task="sketch", budget="quick", results="runs")
frame = bench.load_results("runs")
samples = frame[frame["row"] == "samples"]
say(samples.pivot(index="metric", columns="method", values="value").round(3).to_string())
say(bench.report("runs")[0].parent)
