"""A PostgreSQL server of our own, as Debian packages it, that can be away."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg


class PostgresServer:
    """A server on a free port of this machine, in a folder of its own. It does not start as root, so as root it is
    run by the user ``nobody``."""

    def __init__(self) -> None:
        self._programs = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="hotswap-postgres-"))
        self._user = None
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = nobody.pw_uid
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        data = self._folder / "data"
        self._run("initdb", "--pgdata", data, "--username=hotswap", "--auth=trust", "--no-sync", "--encoding=UTF8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self._folder,
            "fsync": "off",
        }
        self._command = [self._programs / "postgres", "-D", data, *(f"--{k}={v}" for k, v in settings.items())]
        self.start()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://hotswap:secret@127.0.0.1:{self._port}/{database}"

    def make_database(self) -> str:
        """Return the address of a new, empty one."""
        name = f"test_{uuid4().hex[:12]}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, user=self._user, stdout=log, stderr=log)
        until = time.monotonic() + 30
        while True:
            try:
                return psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < until, "PostgreSQL does not start"
                time.sleep(0.05)

    def stop(self) -> None:
        """End every connection, and refuse new ones from now on."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        subprocess.run(command, user=self._user, cwd=self._folder, check=True, capture_output=True)


def _programs() -> Path:
    """Return the newest server's folder; Debian puts it on nobody's path."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = shutil.which("initdb")
    if packaged:
        return packaged[-1].parent
    assert found, "PostgreSQL is needed: apt-get install postgresql (as root, 'make setup' does it)"
    return Path(found).resolve().parent
