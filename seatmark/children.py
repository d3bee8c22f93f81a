"""Child processes that do not outlive their parent."""

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# prctl(2): PR_SET_PDEATHSIG
_SET_PARENT_DEATH_SIGNAL = 1


def end_with_parent() -> None:
    """For `preexec_fn`: the kernel sends this process SIGTERM when its parent dies, however it does. Only on Linux."""
    if _LIBC is not None:
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
