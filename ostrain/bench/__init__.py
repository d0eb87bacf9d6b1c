"""Benchmarks: a matrix of jobs run one after the other, measured, compared with each other and with the last time."""
