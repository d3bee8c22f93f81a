"""Logs and webhooks of other licence servers, turned into entitlement events."""
