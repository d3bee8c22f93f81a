"""A sink as a process of its own, for a test that kills it: `python -m tests.sink_process BROKERS PREFIX DSN`."""

import asyncio
import sys

from processors.brokers import Brokers
from processors.sink import Sink
from views.store import connect

if __name__ == "__main__":
    brokers, prefix, dsn = sys.argv[1:]
    # Small batches: a kill then comes between two of them, or in the middle of one.
    sink = Sink(
        brokers=Brokers(brokers),
        topic_prefix=prefix,
        client_factory=lambda: connect(dsn),
        flush_seconds=0.01,
        flush_rows=50,
        alone=True,
    )
    asyncio.run(sink.run(asyncio.Event()))
