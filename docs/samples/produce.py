"""Sends one event to Seatmark: a seat was activated. Needs aiokafka.

python produce.py 127.0.0.1:19092 entitlement-events
"""

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime

from aiokafka import AIOKafkaProducer


async def main(brokers: str, topic: str) -> None:
    # Chooses partitions by murmur2 of the key, as Seatmark needs it. Clients on librdkafka: partitioner=murmur2_random.
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        event = {
            "specversion": "1.0",
            # Where it is not known if an event arrived, send it again with the same id and time: it counts once.
            "id": str(uuid.uuid4()),
            "source": "/license-servers/eu-1",
            "type": "seat.activated",
            "subject": "acme-cad",
            "time": datetime.now(UTC).isoformat(),
            "data": {"customer": "acme", "product": "cad", "seat_id": "wks-12", "user": "ann@example.com", "host": "wks-12"},
        }
        # The key is the entitlement: its events stay in order.
        await producer.send_and_wait(topic, key=event["subject"].encode(), value=json.dumps(event).encode())
    finally:
        await producer.stop()


asyncio.run(main(*sys.argv[1:]))
