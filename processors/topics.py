"""What the topics and the consumer groups are called. Apart from the worker, so that other commands need not load it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topics:
    """The topics' names, with the deployment's prefix."""

    prefix: str = ""

    @property
    def events(self) -> str:
        return self.prefix + "entitlement-events"

    @property
    def dead_letters(self) -> str:
        return self.prefix + "entitlement-events-dlq"

    @property
    def alerts(self) -> str:
        return self.prefix + "overdraft-alerts"

    @property
    def activity(self) -> str:
        return self.prefix + "entitlement-activity"

    @property
    def days(self) -> str:
        return self.prefix + "entitlement-days"

    @property
    def changelog(self) -> str:
        return self.prefix + "seatmark-ledger-changelog"


def worker_group(topic_prefix: str) -> str:
    """The workers' consumer group, which is also the Faust app's id."""
    return f"{topic_prefix}seatmark"


def sink_group(topic_prefix: str) -> str:
    """The sinks' consumer group."""
    return f"{topic_prefix}seatmark-sink"
