"""`python -m tests.faults.process worker [--failpoint after-outputs:3]`: the usual command, in a process that fails there."""

import sys

from seatmark.cli import main
from tests.faults.failpoints import install, tell_generations

if __name__ == "__main__":
    if "--failpoint" in sys.argv:
        place = sys.argv.index("--failpoint")
        install(sys.argv[place + 1])
        del sys.argv[place : place + 2]
    if "worker" in sys.argv:
        tell_generations()
    main()
