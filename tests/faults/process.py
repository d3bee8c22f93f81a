"""`python -m tests.faults.process worker [--failpoint after-outputs:3]`: the usual command, in a process that fails there."""

import ctypes
import signal
import sys

from seatmark.cli import main
from tests.faults.failpoints import install, tell_generations

# prctl(2): PR_SET_PDEATHSIG
_SET_PARENT_DEATH_SIGNAL = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        # SIGTERM would not do: when the harness is gone, so are the brokers, and a worker waits for those.
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if "--failpoint" in sys.argv:
        place = sys.argv.index("--failpoint")
        install(sys.argv[place + 1])
        del sys.argv[place : place + 2]
    if "worker" in sys.argv:
        tell_generations()
    main()
