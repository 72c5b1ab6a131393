"""Ports that Ray has opened on this machine, and whether they ask for the cluster's token.

Ray 2.60 listens on all interfaces whatever it is told. Token authentication is what stands between its ports
and everybody who can reach them, so it is tried, not believed: one harmless question without a token for each
kind of Ray server. gRPC's own health service answers without one; that is no danger.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import grpc
import psutil

ASK_S: Final = 3.0
QUESTIONS: Final = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",  # the head's gcs_server
    "/ray.rpc.NodeManagerService/GetNodeStats",  # each node's raylet
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",  # workers and drivers
)
SERVERS: Final = ("gcs_server", "raylet")
FOLDERS: Final = ("/ray/_private/", "/ray/dashboard/", "/ray/autoscaler/", "ray.util.client.server")
LOOPBACK: Final = ("127.", "::1", "::ffff:127.")


class Door(StrEnum):
    OPEN = "open"  # lets anybody in
    GUARDED = "guarded"  # wants the token
    OTHER = "other"  # speaks something else: metrics, for example


@dataclass(frozen=True, slots=True)
class Port:
    number: int
    process: str
    pid: int
    loopback: bool  # nobody else can reach it
    door: Door


def ask(address: str, timeout_s: float = ASK_S) -> Door:
    """What a Ray server at HOST:PORT does with somebody who has no token. Blocking."""
    door = Door.OTHER
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        for question in QUESTIONS:
            try:
                channel.unary_unary(question, _same, _same)(b"", timeout=timeout_s)
            except grpc.RpcError as error:
                code = error.code()
                if code == grpc.StatusCode.UNAUTHENTICATED:
                    door = Door.GUARDED
                elif code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    return door  # no gRPC there: the other questions would find the same
            else:
                return Door.OPEN
    return door


def _same(data: bytes) -> bytes:
    """Messages here are bytes already."""
    return data


def open_ports(also: Collection[int] = ()) -> list[Port]:
    """Of every Ray process that this user may look into; `also`: drivers, by pid. Blocking."""
    found = {}
    for process, name in _processes(also):
        for number, address in _listening(process):
            loopback = address.startswith(LOOPBACK)
            host = f"[{address}]" if ":" in address else address
            host = "127.0.0.1" if address in {"::", "0.0.0.0"} else host  # noqa: S104 -- compared, not bound
            found[number] = Port(number, name, process.pid, loopback, ask(f"{host}:{number}"))
    return sorted(found.values(), key=lambda port: port.number)


def findings(ports: Iterable[Port]) -> list[str]:
    """Sentences for the owner: what is open, how bad that is, and what to do. Empty without Ray."""
    reachable = [port for port in ports if not port.loopback]
    said = [
        f"Port {port.number} of Ray's {port.process} (process {port.pid}) lets in everybody who can reach it,"
        " and so lets them run programs here: stop that cluster and start it with RAY_AUTH_MODE=token."
        for port in reachable
        if port.door is Door.OPEN
    ]
    if reachable:
        numbers = ", ".join(str(port.number) for port in reachable)
        guarded = sum(port.door is Door.GUARDED for port in reachable)
        said.append(
            f"Ray listens on all interfaces with ports {numbers} ({guarded} of {len(reachable)} ask for the"
            " cluster's token, which crosses the network in plain text): close them in this machine's"
            " firewall to all but the machines of the site."
        )
    return said


def _processes(also: Collection[int]) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if not command:
            continue
        name = Path(command[0]).name
        if name in SERVERS:
            yield process, name
        elif command[0].startswith("ray::"):
            yield process, command[0].split()[0]
        elif "python" in name and any(folder in word for word in command[:6] for folder in FOLDERS):
            yield process, "helper"
        elif process.pid in also:
            yield process, "driver"


def _listening(process: psutil.Process) -> list[tuple[int, str]]:
    """(port, address) of each; nothing if this user may not know."""
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return []
    return [(found.laddr.port, found.laddr.ip) for found in connections if found.status == psutil.CONN_LISTEN]
