"""The catalogue of topics (topics.yaml), read."""

from dataclasses import dataclass
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Topic:
    """One topic of the catalogue. config: Kafka's settings of the topic, as text."""

    name: str
    owner: str
    key: str
    value: str
    version: int
    compatibility: str
    config: dict[str, str]
    schema: str | None = None


def catalogue() -> list[Topic]:
    """All topics, without a deployment's prefix."""
    document = yaml.safe_load(files("schemas").joinpath("topics.yaml").read_text())
    return [
        Topic(name=name, **{**entry, "config": {key: str(value) for key, value in entry["config"].items()}})
        for name, entry in document["topics"].items()
    ]
