"""What all tests share: the fixtures with running brokers and stores."""

pytest_plugins = ["tests.fixtures_brokers", "tests.fixtures_stores"]
