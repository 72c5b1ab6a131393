"""Round trips of a task that does nothing through procrastinate: deferred, done, and recorded as done.

Run by `settlements.py` with a Python that has procrastinate: URL, how many wait at once, and for how many
seconds. Those who wait and the worker are one process and one loop, as its own documentation shows it, with
the concurrency that it shows (30); a waiting caller is told as soon as the job's end is committed, without
asking the database for it, which procrastinate itself has no way for. Prints JSON.
"""

import asyncio
import json
import sys
import time
from typing import Any

import procrastinate  # type: ignore[import-not-found]  # in an environment of its own

CONCURRENCY = 30
WARM_UP_S = 0.5


async def main(url: str, workers: int, waiting: int, seconds: float) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=CONCURRENCY + 10)
    app = procrastinate.App(connector=connector)

    @app.task(name="nothing")  # type: ignore[untyped-decorator]  # nothing is known of it here
    async def nothing() -> None:
        pass

    done: dict[int, asyncio.Event] = {}
    finish = app.job_manager.finish_job

    async def finished(job: Any, *rest: Any, **named: Any) -> None:
        await finish(job, *rest, **named)
        done.setdefault(job.id, asyncio.Event()).set()

    app.job_manager.finish_job = finished
    counted = 0

    async def caller(until: float) -> None:
        nonlocal counted
        while time.perf_counter() < until:
            number = await nothing.defer_async()
            await done.setdefault(number, asyncio.Event()).wait()
            del done[number]
            counted += 1

    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        working = [
            asyncio.create_task(app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False))
            for _ in range(workers)
        ]
        for span in (WARM_UP_S, seconds):
            counted, began, busy = 0, time.perf_counter(), time.process_time()
            await asyncio.gather(*(caller(began + span) for _ in range(waiting)))
            took, busy = time.perf_counter() - began, time.process_time() - busy
        for worker in working:
            worker.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    version = procrastinate.__version__ if hasattr(procrastinate, "__version__") else ""
    print(
        json.dumps(
            {"rate": counted / took, "done": counted, "cpu_s": busy / max(1, counted), "version": version}
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
