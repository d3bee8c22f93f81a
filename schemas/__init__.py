"""The contract: topics, events, alerts, day rows and activity rows. No I/O, and nothing of ours is imported here."""
