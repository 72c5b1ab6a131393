"""A script: a Ray cluster of NODES nodes on this machine until its stdin closes, `ray.cluster_utils` as Ray's
own tests use it. Says one line of JSON: its address, and of each node the id and the process ids.

    python ray_nodes.py FOLDER NODES
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

TRIES = 3  # Ray gives its own helpers 15 s to start, which a busy machine may exceed
STORE_BYTES = 100 * 1024 * 1024


def main() -> None:
    folder, nodes = Path(sys.argv[1]), int(sys.argv[2])
    os.environ["RAY_TMPDIR"] = str(folder)
    (folder / "ray").mkdir()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {
        "num_cpus": 2,
        "num_gpus": 0,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "include_log_monitor": False,
    }
    for left in reversed(range(TRIES)):
        cluster = Cluster()
        try:
            for number in range(nodes):
                cluster.add_node(**common, **({} if number else {"temp_dir": str(folder / "ray")}))
            break
        except Exception as error:  # Ray raises no narrower class
            sys.stderr.write(f"{error}\n")
            cluster.shutdown()
            if not left:
                raise
    found = [
        {
            "id": node.node_id,
            "pids": [process.process.pid for each in node.all_processes.values() for process in each],
            "raylet": node.all_processes["raylet"][0].process.pid,
        }
        for node in cluster.list_all_nodes()
    ]
    sys.stdout.write(json.dumps({"address": cluster.address, "nodes": found}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
