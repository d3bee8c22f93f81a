"""Which partition an entitlement's records are on: the one that Kafka's own clients choose, murmur2 of the key."""

from aiokafka.partitioner import DefaultPartitioner

_partitioner = DefaultPartitioner()


def partition_of(entitlement: str, partitions: int) -> int:
    """The partition, of that many."""
    numbers = range(partitions)
    partition: int = _partitioner(entitlement.encode(), numbers, numbers)
    return partition
