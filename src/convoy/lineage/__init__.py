"""Provenance: trace a result to its commit, data and params, compare and restore runs, explain what would rerun."""
