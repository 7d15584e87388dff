"""The preparer: a child process of the service that checks a submission, estimates what it needs and makes its run folder.

It imports plugins, which the service does not, and no torch, unless a plugin's estimate does. It is kept between submissions, and
ends when something it imported has changed on disk. Whatever a plugin does to it is the end of one submission and not of the
process, unless it ends the process itself or hangs, which the service notices.
"""
