"""Debian's PostgreSQL on loopback, with a database of its own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

#: Where Debian puts its programs.
_PROGRAMS = Path("/usr/lib/postgresql")


def install() -> Path:
    """The folder of the server's programs; installed from Debian where they are not there."""
    if not list(_PROGRAMS.glob("*/bin/postgres")):
        subprocess.run(["apt-get", "update", "-q"], check=True, timeout=300)
        packages = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "postgresql"]
        subprocess.run(packages, check=True, timeout=600)
    return sorted(_PROGRAMS.glob("*/bin"))[-1]


@contextlib.contextmanager
def running():
    """Gives (URL, a function that stops and starts the server)."""
    programs, folder = install(), Path(tempfile.mkdtemp(prefix="postgres"))
    shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program, *arguments):
        words = ["runuser", "-u", "postgres", "--", str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(words, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=120)

    def restart():
        run("pg_ctl", "-w", "-m", "immediate", "restart", "-l", str(folder / "log"), "-o", options)

    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
    run("initdb", "-A", "trust", "-U", "postgres")
    run("pg_ctl", "-w", "start", "-l", str(folder / "log"), "-o", options)
    try:
        yield f"postgresql://postgres:any@127.0.0.1:{port}/postgres", restart
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
