"""What an exit code means, and which one an error becomes."""

from __future__ import annotations

from typing import ClassVar

from market.errors import NoProvider, OctoError

OK = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
BROKEN = 4
NOBODY = 5
INTERRUPTED = 130

MEANINGS = {
    OK: "done",
    FAILED: "failed: the message says why, and what to do next",
    USAGE: "wrong usage: no such command, option or value",
    NOT_RUNNING: "no node is running in this data folder, or it does not answer",
    BROKEN: "a receipt was checked, and something in it is broken",
    NOBODY: "nobody on the mesh can serve this now: no such model on offer, or no provider",
    INTERRUPTED: "interrupted by Ctrl-C",
}


class NodeNotRunning(OctoError):
    code = "node_not_running"


class NodeAnswered(OctoError):
    """The running node said no. `status` is HTTP's, `remote_code` its stable code, `reasons` why not, peer by peer."""

    code = "node_answered"
    nobody: ClassVar[frozenset[str]] = frozenset({"no_provider", "model_not_found"})

    def __init__(
        self,
        message: str,
        *,
        status: int,
        remote_code: str = "",
        reasons: dict[str, str] | None = None,
        next_step: str = "",
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.status = status
        self.remote_code = remote_code
        self.reasons = reasons or {}


def code_of(error: OctoError) -> int:
    """The exit code of a command that ended with this error."""
    if isinstance(error, NodeNotRunning):
        return NOT_RUNNING
    if isinstance(error, NoProvider) or (isinstance(error, NodeAnswered) and error.remote_code in NodeAnswered.nobody):
        return NOBODY
    return FAILED
