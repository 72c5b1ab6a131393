"""What an engine's library says of this machine: `python -m worker.engines.survey MODULE`, JSON on stdout.

In a process of its own because importing torch takes seconds and hundreds of megabytes, and because a
library that does not fit the processor ends the process that imports it.
"""

import importlib
import json
import sys
from typing import Any


def answer(name: str) -> dict[str, Any]:
    """`error` in words, or what can be told."""
    try:
        module = importlib.import_module(name)
        if name == "torch":
            return {"torch": torch_report(module)}
        return {"cards": llamacpp_cards(module.get_device_info())} if name == "xllamacpp" else {}
    except Exception as error:  # whatever it raises is the answer
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:300]}


def torch_report(torch: Any) -> dict[str, Any]:
    """In the shape of worker.machine.Torch."""
    report: dict[str, Any] = {"cuda": torch.version.cuda or "", "hip": torch.version.hip or ""}
    report["mps"] = bool(torch.backends.mps.is_available())
    if report["mps"]:
        memory = int(torch.mps.recommended_max_memory())
        report["cards"] = [{"name": "Apple GPU", "backend": "mps", "memory_bytes": memory}]
    if not (torch.version.cuda or torch.version.hip):
        return report
    try:
        torch.cuda.init()
    except Exception as error:  # whatever the driver dislikes is the answer, too
        return report | {"why": str(error).strip().partition("\n")[0][:300]}
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    backend = "rocm" if torch.version.hip else "cuda"
    return report | {
        "available": True,
        "bfloat16": bool(torch.cuda.is_bf16_supported()),
        "architectures": list(torch.cuda.get_arch_list()),
        "cards": [
            {
                "name": str(card.name)[:200],
                "backend": backend,
                "memory_bytes": int(card.total_memory),
                "capability": f"{card.major}.{card.minor}" if backend == "cuda" else "",
            }
            for card in found[:64]
        ],
    }


def llamacpp_cards(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The devices of a build of llama.cpp that are no processors ("CUDA0", "Vulkan1", "Metal")."""
    found = []
    for device in devices[:64]:
        name = str(device["name"]).lower()
        backend = next((b for b in ("cuda", "rocm", "vulkan") if name.startswith(b)), "mps")
        if name.startswith(("cuda", "rocm", "vulkan", "metal", "mtl")):
            memory = int(device["memory_total"])
            found.append(
                {"name": str(device["description"])[:200], "backend": backend, "memory_bytes": memory}
            )
    return found


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])), flush=True)  # noqa: T201 -- the answer
