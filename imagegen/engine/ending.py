"""The end of a process that serves jobs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from typing import NoReturn

from imagegen.engine.service import Service

log = logging.getLogger(__name__)


def end_process(service: Service, status: int = 0) -> NoReturn:
    """Closes the service and ends the process: with `status`, or with 1 where the GPU is dead or the model can
    never be loaded.

    Not by sys.exit, which waits for every thread: one may hang in the GPU for good, another may be downloading twenty
    gigabytes. Other processes that were started here, such as the heartbeat of RunPod's SDK, end too.
    """
    service.close()
    if (fatal := service.fatal) is not None:
        log.error("%s", fatal)
        status = 1
    for process in multiprocessing.active_children():
        process.terminate()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
