"""The service: one small process per user and machine that queues jobs, starts and restarts workers, and answers clients.

Imports no torch and no plugin. `lifetime` says how it begins and ends, `scheduler` what it does, `app` what it can be asked.
"""
