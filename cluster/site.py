"""What actors are given: clock, pixel store, DAQ, databases, archives, streams. One site a process."""

from functools import cached_property
from typing import Protocol

from actors.associator import PacketArchive
from actors.camera_reader import PixelStore
from actors.catch_up import CameraBuffer
from actors.fan_out import Chronicle
from actors.reduction import Products
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import AlertSink, AlertStream
from backbone.butler import ButlerArchive
from backbone.daq_client import FlightDaq
from backbone.dead_letters import DeadLetterSink, DeadLetterTopic
from backbone.journal import PostgresJournal
from backbone.l1 import L1Database
from backbone.l1_postgres import L1Postgres
from backbone.signing_key import SigningKey
from backbone.visit_stream import NoticeSink, VisitStream
from cluster.products import ButlerProducts
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import Clock
from schemas.instrument import Camera


class Site(Protocol):
    """The collaborators of the actors of a process; made when first asked for."""

    settings: Settings

    @property
    def camera(self) -> Camera:
        """The focal plane."""

    @property
    def clock(self) -> Clock:
        """The night's time."""

    @property
    def pixels(self) -> PixelStore:
        """Pixels on their way."""

    @property
    def daq(self) -> CameraBuffer:
        """The camera's DAQ."""

    @property
    def archive(self) -> ButlerArchive:
        """Files."""

    @property
    def products(self) -> Products:
        """Calibrations, templates, reference stars."""

    @property
    def alert_archive(self) -> PacketArchive:
        """Packets."""

    async def chronicle(self) -> Chronicle:
        """The journal, to read."""

    async def l1(self) -> L1Database:
        """The L1 database."""

    @property
    def signing_key(self) -> SigningKey:
        """What signs notices."""

    async def alert_sink(self) -> AlertSink:
        """Where alerts go."""

    async def lite_sink(self) -> AlertSink:
        """Where they go without history and cutouts."""

    async def notice_sink(self) -> NoticeSink:
        """Where notices go."""

    async def dead_letter_sink(self) -> DeadLetterSink:
        """Where refused input goes."""


class FolderSite:
    """What every site finds in the night's folder, opened when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.camera = settings.camera

    @cached_property
    def archive(self) -> ButlerArchive:
        """The repository."""
        return ButlerArchive.open(self.settings.butler)

    @cached_property
    def products(self) -> ButlerProducts:
        """Earlier products, from the repository."""
        return ButlerProducts(self.archive, self.settings.instrument)

    @cached_property
    def alert_archive(self) -> AlertArchive:
        """Packets on disk."""
        return AlertArchive(self.settings.alerts, alert_schema())

    @cached_property
    def signing_key(self) -> SigningKey:
        """The night's own."""
        return SigningKey.in_folder(self.settings.output)


class ServerSite(FolderSite):
    """A process of the system proper: PostgreSQL, Kafka, the DAQ over the network, the Butler's repository."""

    def __init__(self, settings: Settings, pixels: PixelStore, chronicle: Chronicle | None = None) -> None:
        super().__init__(settings)
        self.pixels = pixels
        self._chronicle = chronicle
        self.clock: Clock = StoredClock(settings.clock_file)
        self.daq = FlightDaq(settings.daq)

    async def chronicle(self) -> Chronicle:
        """The journal, to read."""
        return self._chronicle or await PostgresJournal.open(self.settings.postgres)

    async def l1(self) -> L1Database:
        """The L1 database."""
        return await L1Postgres.open(self.settings.postgres)

    async def alert_sink(self) -> AlertSink:
        """The broker."""
        return await AlertStream.open(self.settings.kafka, self.settings.alert_topic, self.clock)

    async def lite_sink(self) -> AlertSink:
        """The broker."""
        return await AlertStream.open(self.settings.kafka, self.settings.lite_topic, self.clock)

    async def notice_sink(self) -> NoticeSink:
        """The broker."""
        return VisitStream(self.settings.kafka, self.settings.visit_topic)

    async def dead_letter_sink(self) -> DeadLetterSink:
        """The broker."""
        return DeadLetterTopic(self.settings.kafka)
