"""A worker as a service of its machine: the files of systemd, launchd and the Windows task scheduler.

Pure: texts from what they are made for. A stop or a restart is a drain in all of them: the manager waits
longer than the worker does for the answers that run. Sources: systemd.service(5), systemd.exec(5),
systemd.resource-control(5), launchd.plist(5), the Task Scheduler schema.
"""

import plistlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath
from typing import Final

NAME: Final = "potluck-worker"
LABEL: Final = "org.potluck.worker"
TASK: Final = "Potluck worker"
STOP_MARGIN_S: Final = 30  # for the farewell and the engines' ends, after the drain
WATCHDOG_S: Final = 60
START_S_MAX: Final = 900  # the first start asks torch about cards, on a cold disk
# What is not mended by starting again: usage, not joined, settings that are wrong (potluck.errors.ExitCode).
HOPELESS: Final = "2 3 5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """`command` starts the worker; `writes` are the folders that it may write into."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    drain_s: float
    writes: tuple[PurePath, ...] = ()
    user: str = ""
    memory_max: str = ""  # as systemd writes it: 12G, 80%
    log_file: str = ""  # where the manager keeps no log itself

    @property
    def stop_s(self) -> int:
        return int(self.drain_s) + STOP_MARGIN_S


_HARDENED: Final = """\
# Engines run from data alone; whatever breaks in them should reach nothing else.
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0077
"""

# These need root, or namespaces that many systems do not give to users.
_HARDENED_SYSTEM: Final = """\
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
CapabilityBoundingSet=
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# Of the devices only the cards: NVIDIA's, and those of AMD and Intel (drm, kfd).
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-drm rw
DeviceAllow=char-kfd rw
# Makes NVIDIA's device files, for which the worker itself has no rights; nothing where there is no such card.
ExecStartPre=-+/bin/sh -c 'command -v nvidia-modprobe >/dev/null && nvidia-modprobe -c 0 -u || true'
"""


def systemd(service: Service, *, system: bool) -> str:
    """A unit for the whole machine, or for the manager of one user."""
    environment = "".join(
        f"Environment={_quoted(f'{name}={value}')}\n" for name, value in service.environment.items()
    )
    lines = [f"User={service.user}\n"] if system and service.user else []
    if service.memory_max:
        lines.append(f"MemoryMax={service.memory_max}\n")
    hardened = _HARDENED
    if system:
        paths = " ".join(_quoted(f"-{path}") for path in service.writes)
        hardened += _HARDENED_SYSTEM + (f"ReadWritePaths={paths}\n" if paths else "")
    return f"""\
[Unit]
Description=Potluck worker: shares this machine with a pool
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(_quoted(part) for part in service.command)}
{environment}{"".join(lines)}\
# A stop is a drain: the answers that run are finished or handed over, and none is lost.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={service.stop_s}
TimeoutStartSec={START_S_MAX}
WatchdogSec={WATCHDOG_S}
Restart=on-failure
RestartSec=10
RestartPreventExitStatus={HOPELESS}
# Whoever sits at the machine comes first.
Nice=10
OOMScoreAdjust=500
{hardened}
[Install]
WantedBy={"multi-user.target" if system else "default.target"}
"""


def _quoted(text: str) -> str:
    """As systemd.syntax(7) reads it back; specifiers and variables are plain text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = all(c.isalnum() or c in "-_./:=+,@" for c in escaped)
    return escaped if plain and escaped else f'"{escaped}"'


def launchd(service: Service) -> bytes:
    """A property list for a user's LaunchAgents."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [*service.command, "--log-file", service.log_file],
            "EnvironmentVariables": dict(service.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 30,
            "ExitTimeOut": service.stop_s,
            "ProcessType": "Background",
            "Nice": 10,
            "Umask": 0o077,
        }
    )


def windows_task(service: Service) -> str:
    """A task that starts when its user logs on. About battery the owner's rules decide, not the scheduler."""
    arguments = (*service.command[1:], "--log-file", service.log_file)
    said = " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
    user = f"<UserId>{escape(service.user)}</UserId>" if service.user else ""
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.3" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>Shares this machine with a Potluck pool.</Description></RegistrationInfo>
  <Triggers><LogonTrigger><Enabled>true</Enabled>{user}</LogonTrigger></Triggers>
  <Principals>
    <Principal id="Author">
      {user}<LogonType>InteractiveToken</LogonType><RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>10</Count></RestartOnFailure>
    <Priority>7</Priority>
  </Settings>
  <Actions Context="Author">
    <Exec><Command>{escape(service.command[0])}</Command><Arguments>{escape(said)}</Arguments></Exec>
  </Actions>
</Task>
"""
