"""Makes both databases and brings them to the schemas of the installed MLflow and Optuna, before anything reads them.

    schema.py               do that; an older schema only where a backup of it is at most an hour old
    schema.py reset-login   give the administrator the password of .env again

Exit codes: 0 ready · 3 an older schema without a backup · 4 a newer schema than this version knows.
"""

import os
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from alembic.script import ScriptDirectory
from psycopg import sql

BACKUPS = Path("/backups")
FRESH = 3600
PASSWORDS = {"mlflow": "MLFLOW_DB_PASSWORD", "optuna": "OPTUNA_DB_PASSWORD"}


@dataclass(frozen=True)
class Schema:
    """One set of tables: in which database, which table holds its revision, where its migrations lie."""

    name: str
    database: str
    table: str
    package: str
    folder: str

    def script(self) -> ScriptDirectory:
        """Its migrations; the package is not imported."""
        return ScriptDirectory(str(Path(find_spec(self.package).submodule_search_locations[0]) / self.folder))


SCHEMAS = (
    Schema("mlflow", "mlflow", "alembic_version", "mlflow", "store/db_migrations"),
    Schema("auth", "mlflow", "alembic_version_auth", "mlflow", "server/auth/db/migrations"),
    Schema("optuna", "optuna", "alembic_version", "optuna", "storages/_rdb/alembic"),
)


def main(arguments: list[str]) -> None:
    """What the head of this file says."""
    make_databases()
    if arguments == ["reset-login"]:
        reset_login()
    elif arguments:
        sys.exit(f"schema: unknown argument {arguments[0]!r}")
    else:
        bring_up_to_date()


def make_databases() -> None:
    """Roles with the passwords of the environment, and a database each that the other role cannot enter."""
    with psycopg.connect(
        host="postgres", user="postgres", password=os.environ["POSTGRES_PASSWORD"], autocommit=True
    ) as db:
        for name, variable in PASSWORDS.items():
            verb = "ALTER" if _exists(db, "pg_roles", "rolname", name) else "CREATE"
            password = sql.Literal(os.environ[variable])
            db.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(sql.SQL(verb), sql.Identifier(name), password))
            if not _exists(db, "pg_database", "datname", name):
                # Its own encoding, whatever the cluster was made with.
                made = "CREATE DATABASE {0} OWNER {0} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
                db.execute(sql.SQL(made).format(sql.Identifier(name)))
        for name in (*PASSWORDS, "postgres", "template1"):
            db.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))


def _exists(db: psycopg.Connection, table: str, column: str, name: str) -> bool:
    query = sql.SQL("SELECT 1 FROM {} WHERE {} = %s").format(sql.Identifier(table), sql.Identifier(column))
    return db.execute(query, [name]).fetchone() is not None


def bring_up_to_date() -> None:
    """Nothing where all is current; new tables in empty databases; an upgrade where a fresh backup allows it."""
    found = {schema.name: revision(schema) for schema in SCHEMAS}
    older = [schema for schema in SCHEMAS if is_older(schema, found[schema.name])]
    if older and not has_backup(found):
        names = ", ".join(f"{schema.name} ({found[schema.name] or 'without a revision'})" for schema in older)
        print(
            f"schema: tables of an older version: {names}. Nothing was changed. `xray-opt up` backs up and upgrades; "
            "by hand: docker compose run --rm backup once && docker compose up -d",
            file=sys.stderr,
        )
        sys.exit(3)
    for schema in SCHEMAS:
        if found[schema.name] != schema.script().get_current_head():
            upgrade(schema, found[schema.name])
            print(f"schema: {schema.name} is at {revision(schema)} (was: {found[schema.name] or 'empty'})")


def connection(database: str) -> psycopg.Connection:
    """As the role that owns the database; libpq takes the password from the environment, for MLflow and Optuna too."""
    os.environ["PGPASSWORD"] = os.environ[PASSWORDS[database]]
    return psycopg.connect(host="postgres", user=database, dbname=database)


def revision(schema: Schema) -> str | None:
    """The revision of the tables that are there, none where there is none."""
    with connection(schema.database) as db:
        if db.execute("SELECT to_regclass(%s)", [f"public.{schema.table}"]).fetchone()[0] is None:
            return None
        row = db.execute(sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(schema.table))).fetchone()
        return row and row[0]


def is_older(schema: Schema, found: str | None) -> bool:
    """Whether an upgrade would change tables that hold something."""
    script = schema.script()
    if found is None:
        return _has_tables(schema)
    if found not in {step.revision for step in script.walk_revisions()}:
        print(
            f"schema: the {schema.name} tables ({found}) are of a newer version than this image: use that version, "
            "or restore a backup of this one",
            file=sys.stderr,
        )
        sys.exit(4)
    return found != script.get_current_head()


def _has_tables(schema: Schema) -> bool:
    """Tables without a revision: MLflow's logins had none before 3.6."""
    marks = {"mlflow": "experiments", "auth": "users", "optuna": "studies"}
    with connection(schema.database) as db:
        return db.execute("SELECT to_regclass(%s)", [f"public.{marks[schema.name]}"]).fetchone()[0] is not None


def has_backup(found: dict[str, str | None]) -> bool:
    """Whether a backup of these very schemas was made within the last hour."""
    wanted = {f"{name}={value or ''}" for name, value in found.items()}
    for note in BACKUPS.glob("2*/schemas"):
        if set(note.read_text().split()) == wanted and time.time() - note.stat().st_mtime < FRESH:
            return True
    return False


def upgrade(schema: Schema, found: str | None) -> None:
    """By the tool's own command, in this process: its address carries no password then."""
    connection(schema.database).close()
    url = f"postgresql+psycopg://{schema.database}@postgres/{schema.database}"
    if schema.name == "optuna":
        from optuna.storages import RDBStorage

        # As `optuna storage upgrade` does: tables of the new version must not be made before their migration.
        RDBStorage(url, skip_compatibility_check=True, skip_table_creation=found is not None).upgrade()
    elif schema.name == "mlflow":
        from mlflow.db import commands

        commands.main(["upgrade", url], standalone_mode=False)
    else:
        from mlflow.server.auth.db.cli import commands

        commands.main(["upgrade", "--url", url], standalone_mode=False)


def reset_login() -> None:
    """For a restored database whose .env was lost: its administrator has another password."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    connection("mlflow").close()
    store = SqlAlchemyStore()
    store.init_db("postgresql+psycopg://mlflow@postgres/mlflow")
    name, password = (os.environ[f"MLFLOW_AUTH_ADMIN_{part}"] for part in ("USERNAME", "PASSWORD"))
    if store.has_user(name):
        store.update_user(name, password=password)
    print(f"schema: {name} has the password of .env; restart mlflow to drop what it remembers")


if __name__ == "__main__":
    main(sys.argv[1:])
