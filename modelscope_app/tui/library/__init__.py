"""What `mscope` shows without an argument: recent checkpoints, folders, runs."""
