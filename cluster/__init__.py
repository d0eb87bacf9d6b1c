"""Transports, backends and the node agent: everything that touches a node."""
