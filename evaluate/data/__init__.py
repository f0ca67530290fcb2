"""Readers of the real layouts, the identities of data, and the toy world."""
