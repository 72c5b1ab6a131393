"""What keeps a worker from going on: a sentence for its owner, and the exit code of the command."""

from typing import ClassVar

from potluck.errors import ExitCode, PotluckError


class WorkerError(PotluckError):
    """The message says what happened and what to do."""

    default_code: ClassVar[str] = "worker_error"


class WorkerConflict(WorkerError):  # noqa: N818 -- named for what is the case
    """Something else is in the way, or what was given is not valid."""

    exit_code: ClassVar[ExitCode] = ExitCode.INVALID
    default_code: ClassVar[str] = "conflict"


class NotJoined(WorkerError):  # noqa: N818 -- as above
    exit_code: ClassVar[ExitCode] = ExitCode.NOT_LOGGED_IN
    default_code: ClassVar[str] = "not_joined"

    def __init__(self, why: str = "this worker has not joined a pool") -> None:
        super().__init__(
            f"{why}. Ask a member for a token (`potluck coordinator join-token`), then:"
            " potluck worker join URL --token TOKEN"
        )


class Revoked(WorkerError):  # noqa: N818 -- as above
    exit_code: ClassVar[ExitCode] = ExitCode.NOT_LOGGED_IN
    default_code: ClassVar[str] = "worker_revoked"

    def __init__(self, said: str = "") -> None:
        reason = f" ({said})" if said else ""
        super().__init__(
            f"the pool does not let this worker in any more{reason}. Ask its admin why; to come back, remove"
            " the folder `worker` in POTLUCK_HOME and join again with a new token."
        )


class Unreachable(WorkerError):  # noqa: N818 -- as above
    exit_code: ClassVar[ExitCode] = ExitCode.UNREACHABLE
    default_code: ClassVar[str] = "coordinator_unreachable"


class CertificateRefused(WorkerError):  # noqa: N818 -- as above
    """The coordinator's answer holds a certificate that is not ours or not the pool's."""

    default_code: ClassVar[str] = "certificate_refused"

    def __init__(self, why: str) -> None:
        super().__init__(f"the coordinator's certificate was not taken: {why}. Nothing was changed.")
