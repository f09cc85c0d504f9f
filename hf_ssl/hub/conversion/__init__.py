"""Checkpoints of other repositories as release folders: a file for each kind, and what all of them share."""
