"""Benchmarks that ``scripts/bench`` runs: each against a peer in the same run."""
