"""Keeps a run alive: finds faults, decides by one table, starts the next attempt. docs/recovery.md."""
