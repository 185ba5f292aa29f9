"""A database that several processes share: a SQLite file, or a PostgreSQL server. How it is reached, and how its tables
are made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from adapters.errors import DatabaseAway, HotswapError, printable

# How long a statement waits for others' locks, and for a server that does not answer.
LOCK_SECONDS, CONNECT_SECONDS, STATEMENT_SECONDS = 5, 3, 20
MIGRATION_SECONDS = 300
CONNECTIONS = 8
PAGE_BYTES = 4096  # SQLite's own default
PRAGMAS = ("synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON")
# Any number, the same for all replicas: who migrates holds it.
LOCK = 0x686F7473
State = Literal["current", "older", "newer"]
EXAMPLE = "postgresql://user:password@host/database"


@dataclass(frozen=True)
class Schema:
    """What a database is for: its name in messages, the setting that says where it is, the folder of alembic's steps,
    the table in which alembic notes the last one, and who makes the tables, as a clause."""

    what: str
    setting: str
    migrations: Path
    table: str
    made_by: str


class Database:
    """A database by its ``place``: a path, ``sqlite:///…`` or ``postgresql://…``; several schemas can share one.

    Raises :class:`HotswapError` for a place that is none, or needs a package that is missing. Safe to use from several
    threads; what is done within :meth:`writing` and :meth:`reading` raises :class:`DatabaseAway` where it is the
    database that fails, and the driver's own errors where it is a row.
    """

    def __init__(self, place: str, schema: Schema, most_bytes: int = 2**60) -> None:
        url = _url(place, schema.setting)
        self._schema = schema
        self.path = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
        self.place = str(self.path or url.render_as_string(hide_password=True))
        self._name = f"the {schema.what} database {self.place}"
        self.most_bytes = most_bytes
        self._engine = _sqlite(url, most_bytes) if self.path else _postgres(url)
        self._file: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Make the tables what this version needs, one replica at a time. Raises :class:`DatabaseAway`."""
        with self._explained():
            if self.path:
                self._make_file(self.path)
            if self._state() != "current":
                with self._engine.begin() as connection:
                    _lock(connection)
                    if self._found(connection) == "older":
                        command.upgrade(self._config(connection), "head")
            if self._state() == "newer":
                raise DatabaseAway(f"{self._name} was made by a newer version of hotswap.")
        self._file = self._seen()

    def check(self) -> None:
        """Raise :class:`DatabaseAway`, with what to do, unless the database is there and of this version."""
        if self.path and not self.path.is_file():
            raise DatabaseAway(
                f"there is no {self._schema.what} database at {self.place}; {self._schema.made_by} "
                f"({self._schema.setting}, or --database, says where)."
            )
        with self._explained():
            state = self._state()
        if state == "older":
            raise DatabaseAway(f"{self._name} is of an older version; start the service, which updates it.")
        if state == "newer":
            raise DatabaseAway(f"{self._name} was made by a newer version of hotswap; use that one.")

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end."""
        with self._explained():
            self._need_file()
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._explained():
            self._need_file()
            with self._engine.connect() as connection:
                yield connection.execution_options(begins="BEGIN")

    def scrub(self) -> None:
        """Have nothing of what was deleted remain in SQLite's log; PostgreSQL's own vacuum sees to that there."""
        if self.path:
            with self._explained(), self._engine.connect() as connection:
                connection.execution_options(begins=None).exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._engine.dispose()

    def _make_file(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # a log that a deleted file left behind would be taken for the new one's
            for rest in ("-wal", "-shm"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            self.close()
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it may hold texts
        with self._engine.connect() as connection:
            connection.execution_options(begins=None).exec_driver_sql("PRAGMA journal_mode=WAL")

    def _state(self) -> State:
        with self._engine.connect() as connection:
            return self._found(connection.execution_options(begins="BEGIN"))

    def _found(self, connection: Connection) -> State:
        scripts, table = ScriptDirectory.from_config(self._config()), self._schema.table
        found = set(MigrationContext.configure(connection, opts={"version_table": table}).get_current_heads())
        if found == set(scripts.get_heads()):
            return "current"
        return "older" if found <= {script.revision for script in scripts.walk_revisions()} else "newer"

    def _config(self, connection: Connection | None = None) -> Config:
        config = Config()
        config.set_main_option("script_location", str(self._schema.migrations).replace("%", "%%"))
        config.attributes["connection"] = connection
        return config

    def _need_file(self) -> None:
        """SQLite would go on with a file that was deleted or replaced, where nobody else finds what it writes."""
        if self._file is not None and self._file != self._seen():
            self.close()
            raise DatabaseAway(f"{self._name} cannot be used: the file is gone, or another one")

    def _seen(self) -> tuple[int, int] | None:
        with suppress(OSError):
            if self.path:
                status = self.path.stat()
                return status.st_dev, status.st_ino
        return None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DataError, IntegrityError):
            raise
        except (SQLAlchemyError, OSError) as error:
            raise DatabaseAway(f"{self._name} cannot be used: {_reason(error)}") from error


def _url(place: str, setting: str) -> URL:
    if "://" not in place:
        return URL.create("sqlite", database=str(Path(place).expanduser().resolve()))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError):  # which would show the password
        raise HotswapError(f"{setting} is no address such as {EXAMPLE}.") from None
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite" or not url.database or url.database == ":memory:":
        raise HotswapError(f"{setting} is a path, {EXAMPLE}, or off, not '{printable(url.drivername)}://…'.")
    return url


def _sqlite(url: URL, most_bytes: int) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": LOCK_SECONDS},
        pool_size=CONNECTIONS,
        pool_timeout=CONNECT_SECONDS,
        json_serializer=_json,
        hide_parameters=True,  # errors go to the log, texts do not
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction for some statements: we do for all
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA max_page_count={min(most_bytes // PAGE_BYTES, 2**31)}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A reader that becomes a writer half-way would be refused without waiting.
        if statement := connection.get_execution_options().get("begins", "BEGIN IMMEDIATE"):
            connection.exec_driver_sql(statement)

    return engine


def _postgres(url: URL) -> Engine:
    options = f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_SECONDS}s -c timezone=UTC"
    network = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
    try:
        return create_engine(
            url,
            connect_args={"connect_timeout": CONNECT_SECONDS, "options": options, **network},
            pool_size=CONNECTIONS,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=True,
            json_serializer=_json,
            hide_parameters=True,
        )
    except (ImportError, NoSuchModuleError):
        raise HotswapError("PostgreSQL needs psycopg: pip install 'hotswap[postgres]'.") from None


_json = partial(json.dumps, ensure_ascii=False)


def _lock(connection: Connection) -> None:
    """Have other replicas wait until this transaction ends; SQLite's has begun with its lock."""
    if connection.dialect.name == "postgresql":
        for limit in ("lock_timeout", "statement_timeout"):
            connection.execute(text(f"SET LOCAL {limit} = '{MIGRATION_SECONDS}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))


def _reason(error: Exception) -> str:
    """Return the driver's own words, of which the first line says what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
