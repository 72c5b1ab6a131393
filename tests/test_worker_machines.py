"""What follows from a machine, for the recorded ones in tests/data/machines: engine, room, threads, verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_worker import EMULATOR

from potluck.catalogue import ModelEntry, Variant
from worker import advice
from worker.cores import share
from worker.doctor import Circumstances, Finding, Reach, can_share, examine
from worker.engines.survey import llamacpp_cards
from worker.engines.weights import choose_device
from worker.machine import Card, Library, Machine
from worker.probe import hardware_of

FOLDER = Path(__file__).parent / "data" / "machines"
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def entry(name: str, quantised_gb: float, half_gb: float) -> ModelEntry:
    variants = (
        Variant(format="none", engines=("llamacpp",), memory_bytes=round(quantised_gb * 1e9)),
        Variant(format="none", engines=("torch",), memory_bytes=round(half_gb * 1e9)),
    )
    return EMULATOR.model_copy(update={"name": name, "variants": variants})


SIZES = [entry("small", 0.5, 0.9), entry("8b", 5.5, 17.0), entry("32b", 20.0, 25.6), entry("70b", 43.0, 80.0)]
WELL = Circumstances(
    home="/home/ada/.local/share/potluck/worker",
    joined="the lab",
    certificate_s=500_000,
    https=Reach(address="https://pool", works=True, skew_s=0.4),
    grpc=Reach(address="pool:8421", works=True),
)


def machine(name: str) -> Machine:
    return Machine.model_validate(RECORDED[name]["machine"])


def topics(findings: list[Finding], state: str) -> list[str]:
    return sorted({finding.topic for finding in findings if finding.state == state})


def test_there_is_a_library_of_machines() -> None:
    assert len(RECORDED) >= 12


@pytest.mark.parametrize("name", RECORDED)
def test_what_follows_from_a_recorded_machine(name: str) -> None:
    """Which engine, where and how exactly, how many threads, what fits, and what the doctor says."""
    here, expect = machine(name), RECORDED[name]["expect"]
    assert [e for e in advice.engines(here) if e not in ("emulator", "openai")] == expect["engines"]
    room = advice.room(here)
    assert (room.device, room.bytes) == (expect["device"], expect["room_bytes"])
    assert advice.dtype(here) == expect["dtype"]
    assert share(here.cores, others=[]) == expect["threads"]
    fitting = [fit.model for fit in advice.fits(here, SIZES) if fit.fits]
    assert (fitting or [""])[-1] == expect["largest"]
    findings = examine(here, WELL, SIZES)
    assert topics(findings, "problem") == expect["problems"]
    assert topics(findings, "advice") == expect["advice"]
    assert can_share(findings) is expect["can_share"]
    if len(fitting) == 1:
        assert any(f"Of the catalogue {fitting[0]} fits." in finding.sentence for finding in findings)
    for finding in findings:
        assert not finding.sentence[0].islower()
        assert finding.sentence[-1] in ".`"
        assert bool(finding.remedy) == (finding.state != "ok"), "what is wrong comes with what to do"


@pytest.mark.parametrize("name", RECORDED)
def test_the_engine_computes_as_was_foreseen(name: str) -> None:
    """The daemon may not load torch; its forecast of device and dtype is torch's own rule."""
    here = machine(name)
    device = advice.room(here).device
    bfloat16 = here.torch is not None and here.torch.bfloat16
    chosen = choose_device(cuda=device == "cuda", cuda_bfloat16=bfloat16, mps=device == "mps")
    assert (chosen.name, chosen.dtype) == (device, advice.dtype(here))


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_is_what_the_coordinator_is_told(name: str) -> None:
    here = machine(name)
    hardware = hardware_of(here)
    assert Machine.model_validate_json(here.model_dump_json()) == here
    assert len(hardware.gpus) == sum(not card.fault for card in here.cards)
    assert hardware.battery is (here.battery is not None)
    assert list(hardware.cpu_features) == list(here.cpu_features)


def said(name: str, around: Circumstances = WELL) -> str:
    return "\n".join(f"{f.sentence} {f.remedy}" for f in examine(machine(name), around, SIZES))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("old-driver", "built for CUDA 12.8, and the driver 470.256.02 knows only 11.4: update the driver"),
        ("windows-torch-without-cuda", "The installed torch is built without cuda"),
        ("two-cards-of-two-ages", "compute capability 6.1 is not among those"),
        ("card-off-the-bus", "It does not answer (GPU is lost)"),
        ("lab-4x-a100", "A model lies on one card; beside NVIDIA A100-SXM4-80GB there are also"),
        ("container-with-limits", "1 threads on 1 of 64 cores"),
        ("container-with-limits", "A limit leaves 4.3 GB to this process"),
        ("memory-taken", "0.3 GB are free of this machine's memory, and the smallest, small, needs 0.5 GB"),
        ("old-processor", "illegal instruction"),
        ("laptop-on-battery", "It runs on its battery, at 43 %"),
        ("gaming-rtx-4090-windows", "14.3 GB of it taken"),
        ("full-disk", "0.2 GB are free on the disk"),
    ],
)
def test_the_doctor_says_what_is_wrong_and_what_to_do(name: str, words: str) -> None:
    assert words in said(name)


@pytest.mark.parametrize(
    ("changes", "topic", "words"),
    [
        ({"joined": "", "not_joined": "this worker has not joined a pool"}, "pool", "potluck worker join"),
        (
            {"https": Reach(address="https://p", works=False, why="timed out")},
            "network",
            "HTTPS at https://p",
        ),
        ({"grpc": Reach(address="p:1", works=False, why="refused")}, "network", "over gRPC at p:1: refused."),
        ({"https": Reach(address="p", works=True, skew_s=-900)}, "clock", "900 s behind the pool's"),
        ({"open_files": ("/w/tls.key",)}, "files", "chmod 600 /w/tls.key"),
        ({"unwritable": ("/w",)}, "files", "/w cannot be written"),
        ({"settings": "worker.toml has no `x`"}, "settings", "Worker.toml has no `x`"),
        ({"engine": "torsh"}, "engines", "The engine torsh that worker.toml asks for is not here"),
    ],
)
def test_what_keeps_a_good_machine_from_sharing(changes: dict[str, Any], topic: str, words: str) -> None:
    around = WELL.model_copy(update=changes)
    findings = examine(machine("gaming-rtx-3060"), around, SIZES)
    assert not can_share(findings)
    assert topics(findings, "problem") == [topic]
    assert words in said("gaming-rtx-3060", around)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"certificate_s": -86_400.0 * 3}, "ended 3.0 days ago. Nothing: the next start renews it"),
        ({"neighbours": (8, 8)}, "Engines' threads spin"),
        ({"threads": 40}, "Lower `threads`"),
        (
            {"ports": ("Port 6379 of Ray lets in everybody: stop that cluster",)},
            "everybody. Stop that cluster.",
        ),
        ({"damaged": ("/c/ab",)}, "/c/ab is damaged"),
    ],
)
def test_what_is_only_advice(changes: dict[str, Any], words: str) -> None:
    around = WELL.model_copy(update=changes)
    assert words in said("gaming-rtx-3060", around)
    assert can_share(examine(machine("gaming-rtx-3060"), around, SIZES))


@pytest.mark.parametrize("name", ["nothing-installed", "memory-taken"])
def test_a_server_of_the_owners_needs_no_engine_and_no_memory(name: str) -> None:
    around = WELL.model_copy(update={"bridges": ("qwen3-8b",)})
    assert can_share(examine(machine(name), around, SIZES))
    assert "Bridges to a server of yours: qwen3-8b." in said(name, around)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("8.6", ("sm_80",), True),
        ("8.0", ("sm_86",), False),
        ("9.0", ("sm_86",), False),
        ("9.0", ("sm_86", "compute_80"), True),
        ("6.1", ("sm_75", "compute_120"), False),
        ("12.0", ("sm_120",), True),
        ("9.0", ("sm_90a",), True),
        ("8.6", ("gfx1100",), False),
    ],
)
def test_which_kernels_run_on_which_card(capability: str, architectures: tuple[str, ...], runs: bool) -> None:
    assert advice.supported(capability, architectures) is runs


def test_a_build_of_llamacpp_for_a_card_has_its_memory_too() -> None:
    """As its own device list names them; the processor is no card."""
    devices = [
        {"name": "CUDA0", "description": "NVIDIA GeForce RTX 3060", "memory_total": 12 * 10**9},
        {"name": "CPU", "description": "AMD Ryzen", "memory_total": 33 * 10**9},
    ]
    [card] = llamacpp_cards(devices)
    here = machine("gaming-rtx-3060").model_copy(update={"memory_free_bytes": 4 * 10**9})
    assert advice.room(here, "llamacpp").bytes == 4 * 10**9
    library = Library(version="1", cards=(Card.model_validate(card),))
    built = here.model_copy(update={"libraries": here.libraries | {"xllamacpp": library}})
    assert advice.room(built, "llamacpp") == advice.Room(12 * 10**9, "NVIDIA GeForce RTX 3060", "cuda")


def test_the_largest_card_is_taken_and_a_lost_one_never() -> None:
    here = machine("gaming-rtx-3060")
    larger = Card(name="L", backend="cuda", memory_bytes=10**11, fault="GPU is lost")
    assert advice.room(here.model_copy(update={"cards": (larger, *here.cards)})).where == here.cards[0].name


@pytest.mark.parametrize(
    ("libraries", "sentence"),
    [
        (("torch", "transformers"), "torch comes first. torch answers with tuned models. "),
        (
            ("torch", "transformers", "xllamacpp"),
            "llamacpp comes first. torch answers with tuned models beside llamacpp. ",
        ),
        (("xllamacpp",), "llamacpp comes first."),
    ],
)
def test_the_doctor_says_who_answers_with_tuned_models(libraries: tuple[str, ...], sentence: str) -> None:
    here = machine("gaming-rtx-3060")
    found = {name: Library(version="1") for name in libraries}
    here = here.model_copy(update={"libraries": found, "cards": ()})
    (said,) = [finding.sentence for finding in examine(here, WELL, SIZES) if finding.topic == "engines"]
    assert sentence in said
    assert ("tuned" in said) == ("tuned" in sentence)


def test_the_doctor_says_whether_models_are_trained() -> None:
    here = machine("gaming-rtx-3060")
    peft = {"peft": Library(version="0.21.2")}
    trains = here.model_copy(update={"libraries": here.libraries | peft})
    for case, sentence in (
        (here, "Nothing is trained: peft is missing"),
        (trains, "Models are trained as well."),
    ):
        said = [finding.sentence for finding in examine(case, WELL, SIZES) if finding.topic == "engines"]
        assert any(sentence in one for one in said), said
