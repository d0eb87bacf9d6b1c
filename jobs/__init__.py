"""Job files, package data."""
