"""Policies learned from demonstrations: data (what was shown), networks, train (the loop), policies (how they act)."""
