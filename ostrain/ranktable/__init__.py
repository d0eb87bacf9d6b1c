"""Rank tables of HCCL: checked, made, merged, converted, explained. Pure: no sockets; ``cluster.hccn`` asks nodes."""

from ostrain.ranktable.check import Expected, Report, check, check_data
from ostrain.ranktable.document import Document, parse, read

__all__ = ["Document", "Expected", "Report", "check", "check_data", "parse", "read"]
