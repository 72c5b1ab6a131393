"""What every model of one daemon shares."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from potluck.fetch import ArtifactSource, Policy
from potluck.store import ModelStore
from worker.hosts.host import StartHost
from worker.hosts.process import EngineHost
from worker.memory import Memory
from worker.messages import AttemptId, Event
from worker.settings import Settings
from worker.speeds import Speeds
from worker.uploads import Uploader
from worker.workroom import Workroom


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """`threads` and `share` are asked when an engine loads: how many cores it has, and how many bytes of its
    memory the model may take (0: as many as it likes). `place` says in which memory an engine keeps its
    models. `handed` hears what an engine works on from now on.
    """

    settings: Settings
    store: ModelStore
    downloads: Policy
    speeds: Speeds
    converted: Path
    threads: Callable[[], int]
    emit: Callable[[Event], None]
    artifacts: ArtifactSource | None
    uploads: Uploader | None
    workroom: Workroom
    memory: Memory
    place: Callable[[str], str]
    share: Callable[[str], int]
    start_host: StartHost = EngineHost.start
    handed: Callable[[AttemptId], None] = lambda _attempt: None
