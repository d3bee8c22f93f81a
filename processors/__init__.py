"""The worker: reads entitlement events, keeps seats, and puts out alerts, days and activity."""
