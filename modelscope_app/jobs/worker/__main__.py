"""`python -P -m modelscope_app.jobs.worker`, as the service starts it."""

from __future__ import annotations

import os
import signal
import traceback

from modelscope_app.jobs import staleness  # noqa: F401  # before everything else of ours, see there
from modelscope_app.jobs.protocol import API_VERSION, Speaker, leave, take_over_stdin, take_over_stdout
from modelscope_app.jobs.worker.inbox import Inbox
from modelscope_app.jobs.worker.resident import ResidentModels


def main() -> None:
    """Until the service is gone, or there is another reason to end."""
    outgoing = take_over_stdout()
    os.register_at_fork(after_in_child=lambda: os.close(outgoing))  # or the service would take a child left behind for the worker
    speaker = Speaker(outgoing)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir("/")
    models = ResidentModels(lambda resident: speaker.say("resident", models=resident))
    inbox = Inbox(take_over_stdin(), models.unload)
    inbox.listen()

    import torch

    from modelscope_app.jobs.worker.machine import devices

    speaker.say("hello", api=API_VERSION, devices=devices(), threads=torch.get_num_threads(), torch=torch.__version__)
    from modelscope_app.jobs.worker.worker import Worker

    leave(Worker(speaker, inbox, models).serve())


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # threads that analyses have left would keep the process from ending
        traceback.print_exc()
        leave(1)
