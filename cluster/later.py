"""How a command opens the folder of a night that was played: its clock, its database, its alert archive."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backbone.alert_archive import AlertArchive
from cluster.services import EmbeddedPostgres, served
from cluster.settings import Settings
from payloads.alert_production.alert_schema import alert_schema
from schemas.errors import BadData


def settings_of(output: Path, kafka: str = "") -> Settings:
    """The settings of a night with a database. Raises BadData if the folder is of none."""
    settings = Settings(output=output.resolve(), kafka=kafka)
    if not settings.clock_file.exists():
        raise BadData(f"{output} is not the folder of a night with a database: there is no {settings.clock_file.name}")
    return settings


def archive_of(output: Path) -> AlertArchive:
    """The alert archive of a night. Raises BadData if the folder has none."""
    folder = Settings(output=output.resolve()).alerts
    if not folder.is_dir():
        raise BadData(f"{folder}: there is no alert archive")
    return AlertArchive(folder, alert_schema())


@contextmanager
def database_of(settings: Settings, postgres: str) -> Iterator[str]:
    """The address given, else that of the night's embedded server, which is started if it does not run.

    Raises BadData if there is neither.
    """
    folder = settings.output / "postgres"
    running = postgres or served(folder)
    if running:
        yield running
    elif (folder / "pgdata").exists():
        with EmbeddedPostgres(folder) as server:
            yield server.url
    else:
        raise BadData(f"{settings.output} has no database of its own: say with --postgres where it is")
