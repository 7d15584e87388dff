"""Runs: the folder a job leaves behind, how it stands, and finding it again."""
