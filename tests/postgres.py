"""A PostgreSQL server of the tests' own: on a free port of this machine, gone when they end."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# Where scripts/setup-postgres and Debian put it, if not on the PATH.
_PLACES = ((Path(sys.prefix) / "postgresql", "usr/lib/postgresql/*/bin"), (Path("/usr/lib/postgresql"), "*/bin"))
_SPEED = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


class Login(NamedTuple):
    """How a program signs in: never by a name or a password that stands in a configuration."""

    user: str
    password: str


def find_postgres() -> Path | None:
    """The folder of the server's programs; None if there is none."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += [folder for place, pattern in _PLACES for folder in sorted(place.glob(pattern), reverse=True)]
    return next((folder for folder in found if (folder / "pg_ctl").exists() and (folder / "psql").exists()), None)


class Postgres:
    """A running server. It refuses everybody without a password."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="crm-spark-postgres-"))
        self.port = _free_port()
        self.owner = Login("keeper", secrets.token_hex(8))
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"jdbc:postgresql://{self.host}/postgres"
        password_file = self.folder / "password"
        password_file.write_text(self.owner.password)
        # The server refuses to be root's.
        self.runs_as: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.runs_as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (self.folder, password_file):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        self._call(
            "initdb", "--pgdata=data", f"--username={self.owner.user}", "--pwfile=password", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        listens = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' {_SPEED}"
        self._call("pg_ctl", "--pgdata=data", "--log=log", "--wait", f"--options={listens}", "start")

    def run(self, sql: str) -> str:
        """What psql answers to some SQL, a line a row."""
        command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        address = ["--host=127.0.0.1", f"--port={self.port}", f"--username={self.owner.user}", "--dbname=postgres"]
        return self._call(*command, *address, text=sql)

    def stop(self) -> None:
        self._call("pg_ctl", "--pgdata=data", "--mode=immediate", "stop")
        shutil.rmtree(self.folder)

    def _call(self, program: str, *arguments: str, text: str | None = None) -> str:
        # Its libraries stand beside it where scripts/setup-postgres unpacked both.
        libraries = sorted(map(str, self.programs.parents[3].glob("lib/*-linux-gnu")))
        environment = {"PATH": os.defpath, "LC_ALL": "C", "PGTZ": "UTC", "PGPASSWORD": self.owner.password}
        environment["LD_LIBRARY_PATH"] = ":".join(libraries)
        # Its answers go to files: what pg_ctl starts would keep a pipe open.
        with (self.folder / "answer").open("w+") as answer, (self.folder / "errors").open("w+") as errors:
            done = subprocess.run(
                [self.programs / program, *arguments], cwd=self.folder, env=environment, input=text, text=True,
                stdout=answer, stderr=errors, check=False, **self.runs_as,
            )  # fmt: skip
            answer.seek(0)
            errors.seek(0)
            assert done.returncode == 0, f"{program}: {errors.read()}"
            return answer.read()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
