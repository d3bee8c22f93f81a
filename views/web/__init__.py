"""The web application: JSON answers from the store, health, metrics."""
