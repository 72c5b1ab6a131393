"""LiteLLM's proxy as a peer: a fixed version, in an environment of its own that is made once."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx2
import stand
from elsewhere import NotThere, environment
from fixtures_pool import free_port

VERSION: Final = "1.106.2"
KEY: Final = "sk-benchmark"
START_S_MAX: Final = 300.0  # the first start after an installation takes the longest
_QUIET: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "PYTHONUNBUFFERED": "1",
}
_READY: Final = "Proxy initialized with Config"  # each of its processes says so


def installed() -> Path:
    """The command. Made at the first call, which takes some minutes and 750 MB. Raises NotThere."""
    return environment("litellm", VERSION, extra="proxy") / "litellm"


@contextmanager
def running(folder: Path, processes: int, models: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """The proxy with so many processes, before the server of each model, by ports; its pid and its port.

    Raises NotThere. Whatever happens, none of its processes is left.
    """
    command, port = installed(), free_port()
    config = folder / f"litellm-{processes}.yaml"
    routes = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": f"http://127.0.0.1:{before}/v1",
                "api_key": "none",
            },
        }
        for model, before in models.items()
    ]
    config.write_text(  # JSON is YAML
        json.dumps({"model_list": routes, "general_settings": {"master_key": KEY}}), encoding="utf-8"
    )
    arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--num_workers", str(processes), "--telemetry", "False"]
    log = folder / f"litellm-{processes}.log"
    with stand.apart([str(command), *arguments], {**os.environ, **_QUIET}, log) as popen:
        _until_open(popen, port, log, processes)
        yield popen.pid, port


def _until_open(popen: "subprocess.Popen[bytes]", port: int, log: Path, processes: int) -> None:
    """All its processes, or the figures would be those of fewer. Raises NotThere."""
    ends = time.monotonic() + START_S_MAX
    while popen.poll() is None and time.monotonic() < ends:
        ready = log.read_text(encoding="utf-8", errors="replace").count(_READY)
        with suppress(httpx2.HTTPError):
            there = httpx2.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).status_code == 200
            if there and ready >= processes:
                return
        time.sleep(0.5)
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    raise NotThere("LiteLLM does not start:\n" + "\n".join(said))
