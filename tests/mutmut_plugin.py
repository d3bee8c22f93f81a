"""For `make mutate` only, a plugin of pytest: mutmut 3.7 asks tests for their name as pytest before 9.2 had it."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item._nodeid = item.nodeid  # type: ignore[attr-defined]
