"""Settings: `CLIPSYNTH_…` environment variables, read here and nowhere else."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from clipsynth.schemas.prompts import MAX_IMAGES


def default_data_dir() -> Path:
    """Return the user's data folder for the files of `clipsynth serve`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "clipsynth"


def is_loopback(host: str) -> bool:
    """Return whether a name or address belongs to this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def secrets_dir() -> Path | None:
    """Return the folder whose files are also settings, such as a container's secrets, if there is one."""
    folder = Path(os.environ.get("CLIPSYNTH_SECRETS_DIR", "/run/secrets"))
    return folder if folder.is_dir() else None


class Settings(BaseSettings):
    """Immutable settings of one process. Durations in seconds, sizes in bytes.

    A setting that no variable sets may be a file with the variable's name, in any case, in `secrets_dir()`.
    """

    model_config = SettingsConfigDict(
        env_prefix="CLIPSYNTH_",
        frozen=True,
        extra="ignore",
        protected_namespaces=(),
        env_ignore_empty=True,  # compose passes unset variables as empty
    )

    redis_url: str | None = None
    redis_password: str | None = Field(default=None, repr=False)
    redis_max_bytes: int = Field(default=1_000_000_000, ge=0)
    data_dir: Path = Field(default_factory=default_data_dir)
    storage_url: str | None = None
    model: Path = Path(__file__).resolve().parent.parent / "checkpoints" / "demo"
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    published_host: str | None = None
    root_path: str = Field(default="", pattern=r"^(/[\w.~-]+)*$")
    metrics_port: int | None = Field(default=None, ge=0, le=65532)
    metrics_host: str | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    retrieval_audio: Path | None = None
    log_format: Literal["text", "json"] = "text"
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    allow_anonymous: bool | None = None
    require_keys: bool = False
    webhook_secret: str | None = None
    webhook_loopback: bool = False
    image_urls: Literal["off", "public", "loopback"] = "off"
    rate_per_s: float = Field(default=50, ge=0)
    rate_burst: float = Field(default=1000, ge=1)
    max_inflight: int = Field(default=5000, ge=0)
    max_queued: int = Field(default=10_000, ge=1)
    max_backlog_s: float = Field(default=21_600, gt=0)
    max_upload_bytes: int = Field(default=400_000_000, ge=1)
    max_upload_bytes_per_key: int = Field(default=150_000_000, ge=1)
    max_download_bytes: int = Field(default=400_000_000, ge=1)
    max_download_bytes_per_key: int = Field(default=150_000_000, ge=1)
    streams_per_key: int = Field(default=100, ge=1)
    storage_reserve_bytes: int = Field(default=256_000_000, ge=0)
    kept_bytes_per_key: int = Field(default=256_000_000, ge=0)
    receive_timeout_s: float = Field(default=60, gt=0)
    send_timeout_s: float = Field(default=60, gt=0)
    max_connections: int = Field(default=1000, ge=1)
    max_duration_s: float = Field(default=60, gt=0)
    max_image_bytes: int = 10_000_000
    max_form_image_bytes: int = 25_000_000
    max_image_pixels: int = 50_000_000
    max_video_bytes: int = Field(default=100_000_000, ge=1)
    max_video_s: float = Field(default=60, gt=0)
    result_ttl_s: int = 86_400
    tombstone_ttl_s: int = 604_800
    janitor_interval_s: float = 60
    job_timeout_s: int = 600
    queue_timeout_s: float = Field(default=3600, ge=0)
    lease_s: int = 15
    heartbeat_s: float = 5
    max_attempts: int = 3

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"_secrets_dir": secrets_dir()} | values)

    @model_validator(mode="before")
    @classmethod
    def _with_password(cls, values: dict[str, Any]) -> dict[str, Any]:
        url, password = values.get("redis_url"), values.get("redis_password")
        if not url or not password or urlsplit(url).password:
            return values
        scheme, _, rest = url.partition("://")
        user, _, host = rest.rpartition("@")
        return values | {"redis_url": f"{scheme}://{user}:{quote(password.strip(), safe='')}@{host}"}

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the API, by its address or its container's published address."""
        return is_loopback(self.published_host or self.host)

    @property
    def metrics_address(self) -> str:
        """Address of the metrics: no wider than the API's unless asked."""
        return self.metrics_host or self.host

    @property
    def max_body_bytes(self) -> int:
        """Largest JSON body: images in base64 (4/3) and their JSON."""
        return MAX_IMAGES * self.max_image_bytes * 4 // 3 + 65_536

    @property
    def max_form_bytes(self) -> int:
        """Largest form."""
        return max(MAX_IMAGES * self.max_form_image_bytes, self.max_video_bytes) + 1_048_576

    @property
    def results_url(self) -> str:
        """fsspec URL of the results."""
        return self.storage_url or (self.data_dir / "results").absolute().as_uri()


# Variables that other parts of the project read.
_OTHER = {"CLIPSYNTH_SECRETS_DIR", "CLIPSYNTH_API_KEY"}


def unknown_variables() -> list[str]:
    """Return the `CLIPSYNTH_…` environment variables that no setting reads."""
    known = {f"CLIPSYNTH_{name.upper()}" for name in Settings.model_fields} | _OTHER
    return sorted(
        name for name in map(str.upper, os.environ) if name.startswith("CLIPSYNTH_") and name not in known
    )
