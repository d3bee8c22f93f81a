"""Acts once on each overdraft alert, whatever crashes and comes again. Needs aiokafka.

python alerts.py 127.0.0.1:19092 overdraft-alerts sales-desk seen.db
"""

import asyncio
import json
import sqlite3
import sys
from typing import Any

from aiokafka import AIOKafkaConsumer


def act(alert: dict[str, Any]) -> None:
    """What is yours: call sales, write a ticket. It may be called again for an alert if it crashed in the middle."""
    data = alert["data"]
    print(f"{alert['type']}: {data['entitlement']}, {data['element']}: {data['level']} of {data['limit']}", flush=True)


async def main(brokers: str, topic: str, group: str, database: str) -> None:
    seen = sqlite3.connect(database)
    seen.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY)")
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=brokers,
        group_id=group,
        auto_offset_reset="earliest",
        # Offsets are committed below, after the work: what was being done at a crash comes again.
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        async for record in consumer:
            alert = json.loads(record.value)
            # The same change has the same id, however often it is sent.
            if seen.execute("SELECT 1 FROM seen WHERE id = ?", (alert["id"],)).fetchone() is None:
                act(alert)
                with seen:
                    seen.execute("INSERT INTO seen VALUES (?)", (alert["id"],))
            await consumer.commit()
    finally:
        await consumer.stop()


asyncio.run(main(*sys.argv[1:]))
