"""A worker: the process that imports torch, executes the runs the service gives it one at a time, and keeps models resident.

    messages in  -> inbox (a thread)  -> worker (the main thread) -> execute -> the run folder
    messages out <- Speaker  <- worker, resident

What is said is in `jobs.protocol`. After each job the process is put back into the state it was in: `surroundings` for the process,
`as_built` for the models.
"""
