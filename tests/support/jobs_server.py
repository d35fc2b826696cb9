"""The HTTP server with micro, which writes down what it generates and stores, and kills itself at a named moment.

    python -m tests.support.jobs_server PORT FOLDER RECORD [MOMENT COUNT]

Each line of RECORD is a moment and a job's id: `accepted`, `running`, `generated`, `stored`, `told`. At the COUNT-th
time of MOMENT the process ends by SIGKILL, before anything else happens. A file keys.toml beside FOLDER has its keys.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from imagegen.cli.serve import serve_http
from imagegen.jobs import archive, runner, webhooks
from tests.support import settings

MOMENTS = ("accepted", "running", "generated", "stored", "told")


def main() -> None:
    """Serves until it is killed."""
    port, folder, record, *kill = sys.argv[1:]
    left = int(kill[1]) if kill else 0
    file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(moment: str, job: str) -> None:
        nonlocal left
        os.write(file, f"{moment} {job}\n".encode())
        if kill and kill[0] == moment:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    add, save = archive.Archive.add, archive.Archive.save
    begin, told = runner.Runner._begin, webhooks.Webhooks._note

    async def noted_add(self, job, *args):
        row, new = await add(self, job, *args)
        if new:
            note("accepted", row.id)
        return row, new

    def noted_begin(self, row):
        note("running", row.id)
        begin(self, row)

    async def noted_save(self, row, *args):
        note("generated", row.id)
        await save(self, row, *args)
        note("stored", row.id)

    async def noted_told(self, row, state, *args):
        if state == "delivered":
            note("told", row.id)
        await told(self, row, state, *args)

    archive.Archive.add, archive.Archive.save = noted_add, noted_save
    runner.Runner._begin, webhooks.Webhooks._note = noted_begin, noted_told
    keys = Path(folder).parent / "keys.toml"
    changes = {"port": int(port), "host": "127.0.0.1", "jobs_dir": Path(folder), "private_hosts": "127.0.0.1"}
    serve_http(settings(**changes, api_keys_file=keys if keys.exists() else None))


if __name__ == "__main__":
    main()
