"""The command line with a worker that something hinders: `python -m tests.hindered worker`.

HINDERED_BY says what: `recovery` does not end before the file HINDERED_UNTIL is there; `blocked`: the fold blocks the event
loop for good; `waiting`: chunks wait for something that never comes. Stopped, it is given one second to end.
"""

import asyncio
import os
import time
from typing import Any

from processors import agents, app
from processors.batching import ChangelogStore
from seatmark.cli import main


def blocks_the_loop(*_: Any, **__: Any) -> Any:
    while True:
        time.sleep(3600)


async def never_ends(*_: Any) -> None:
    await asyncio.Event().wait()


def recover_until_the_file_is_there() -> None:
    recovered = ChangelogStore.on_recovery_completed
    file = os.environ["HINDERED_UNTIL"]

    async def wait_for_the_file(store: ChangelogStore, active: Any, standby: Any) -> None:
        while not os.path.exists(file):  # noqa: ASYNC240
            await asyncio.sleep(0.05)
        await recovered(store, active, standby)

    ChangelogStore.on_recovery_completed = wait_for_the_file


if __name__ == "__main__":
    app._END_SECONDS = 1
    how = os.environ["HINDERED_BY"]
    if how == "recovery":
        recover_until_the_file_is_there()
    elif how == "blocked":
        agents.fold_chunk = blocks_the_loop
    elif how == "waiting":
        agents.ChunkProcessor.process = never_ends  # type: ignore[method-assign]
    main()
