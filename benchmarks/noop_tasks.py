"""Ray's scheduling of tasks that do nothing, on a private cluster of this machine, as a worker starts it.

Run by `planner.py`: the numbers of tasks, with commas. Prints each number and how many a second were asked
for, run and known to be done. The tasks are those of Ray's own microbenchmark (`ray microbenchmark`, "single
client tasks async"): one processor each, a few bytes back. A number that would take longer than a minute by
what the one before took is left out.
"""

import sys
import time
from typing import Any

import psutil

from worker.ray.cluster import Cluster

S_MAX = 60.0
WARM_UP = 100
END_S_MAX = 20.0


def rate(ray: Any, task: Any, count: int) -> float:
    began = time.perf_counter()
    ray.get([task.remote() for _ in range(count)])
    return count / (time.perf_counter() - began)


def main(counts: list[int]) -> int:
    cluster = Cluster.private(cpus=psutil.cpu_count() or 1)
    import ray  # not before the cluster has set the environment: it is read when Ray is loaded

    started = psutil.Process().children(recursive=True)
    try:
        task = ray.remote(_nothing)
        last = rate(ray, task, WARM_UP)
        for count in counts:
            if count / last > S_MAX:
                continue
            last = rate(ray, task, count)
            print("tasks", count, last, flush=True)
    finally:
        started += psutil.Process().children(recursive=True)
        cluster.close()
    _, left = psutil.wait_procs(started, END_S_MAX)
    for process in left:  # Ray's own agents may wait for a head that is gone
        process.kill()
    return 0


def _nothing() -> bytes:
    return b"ok"


if __name__ == "__main__":
    sys.exit(main([int(count) for count in sys.argv[1].split(",")]))
