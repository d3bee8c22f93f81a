"""The fold: what entitlement events mean. Pure: no clock, no I/O, no Faust."""
