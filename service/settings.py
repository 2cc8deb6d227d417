"""Everything an operator can set. Read by ``service.cli`` and ``service.api.app`` only, handed down as arguments.

Sources, the first one that names a setting wins: arguments of the command line, environment variables
(``AUTOENCODER_`` and the name in capitals), the TOML file that ``AUTOENCODER_SETTINGS_FILE`` names, the defaults here.
"""

import ipaddress
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from service.errors import ConfigurationError

ENV_PREFIX = "AUTOENCODER_"
FILE_VARIABLE = f"{ENV_PREFIX}SETTINGS_FILE"
OTHER_VARIABLES: Final = frozenset(
    ENV_PREFIX + name for name in ("SETTINGS_FILE", "STORE_CACHE", "STORE_CACHE_BYTES", "KEY", "ADMIN_KEY")
)
"""Variables that are no settings of the service: of the client, of commands, and of copies of an object store."""
_SERVICE_LINK: Final = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP)")
"""Names of what Kubernetes tells each pod of a service that is called ``autoencoder`` or begins with it."""

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\sA-Z]+)$")]
KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _listed(value: object) -> object:
    """``a,b`` from the environment as ``["a", "b"]``."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


T = TypeVar("T")
Listed = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_listed)]


def is_loopback(host: str) -> bool:
    """Whether a name or address of a host is this machine's own, for whoever resolves it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.removesuffix(".").rpartition(".")[2] == "localhost"


class Settings(BaseSettings):
    """Settings of ``autoencoder serve``. Sizes are in bytes, times in the unit that the name ends with."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    store: Path | str = Field("model_store", description="Folder of the model store, or its URL: `s3://bucket/prefix`.")
    default_model: str | None = Field(
        None, description="Model that `/encode` and the other routes without a model use; unset: the only one."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=64, description="Server processes; each loads the models for itself.")
    root_path: str = Field("", description="Path prefix that a proxy in front strips.")

    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the gRPC services (TensorFlow Serving, Open Inference Protocol); 0 takes a free one; "
        "unset: none.",
    )
    kserve_v1: bool = Field(
        False,
        description="Give `GET /v1/models/{model}` KServe's `name` and `ready` too, and 503 when not ready.",
    )

    watch_interval_s: PositiveFloat = Field(2.0, description="How often the store is looked at for new versions.")
    keep_versions: PositiveInt = Field(
        2, description="Newest versions of each model that stay loaded beside those that aliases name."
    )
    max_loaded_bytes: PositiveInt = Field(
        2048 * 2**20,
        description="Memory that all versions loaded at once may take, estimated from their files: 15 MiB each, 12 "
        "times the size of `saved_model.pb`, and the weights.",
    )
    failed_retry_s: PositiveFloat = Field(60.0, description="Wait before a version that failed to load is tried again.")

    model_threads: int = Field(
        2, ge=1, le=64, description="Threads that run the model: large batches side by side, small ones one by one."
    )
    max_batch_rows: PositiveInt = Field(4096, description="Rows in one call of the model.")
    max_batch_bytes: PositiveInt = Field(16 * 2**20, description="Input bytes in one call of the model.")
    slice_rows: PositiveInt = Field(256, description="Rows of one request in a batch before others have theirs.")
    max_queue_requests: PositiveInt = Field(1024, description="Requests that may wait for the model.")
    max_queue_rows: PositiveInt = Field(131_072, description="Rows that may wait for the model.")
    max_queue_bytes: PositiveInt = Field(256 * 2**20, description="Input bytes that may wait for the model.")

    max_json_bytes: PositiveInt = Field(8 * 2**20, description="Largest JSON body.")
    max_body_bytes: PositiveInt = Field(64 * 2**20, description="Largest body of any other kind.")
    max_decoded_bytes: PositiveInt = Field(64 * 2**20, description="Largest body after decompression, and its arrays.")
    max_received_bytes: PositiveInt = Field(
        192 * 2**20,
        description="Bodies, arrays, results and answers not sent yet, over all requests; beyond it large requests "
        "get 429.",
    )
    max_rows: PositiveInt = Field(65_536, description="Rows in one request; NDJSON streams have no limit.")
    max_explain_rows: PositiveInt = Field(1024, description="Rows in one request with `explain`.")
    max_depth: PositiveInt = Field(32, description="Nesting depth of a JSON body.")
    max_line_bytes: PositiveInt = Field(1 * 2**20, description="Longest line of an NDJSON body.")
    max_pixels: PositiveInt = Field(16 * 2**20, description="Pixels of an image body.")
    max_header_bytes: PositiveInt = Field(16 * 2**10, description="Request line and headers together.")
    max_connections: PositiveInt = Field(
        2048,
        description="Open connections; one more closes the one that is idle for the longest time, else gets 503.",
    )

    request_timeout_ms: PositiveInt = Field(
        10_000, description="Deadline of a request; `X-Timeout-Ms` of the request may shorten it."
    )
    header_timeout_s: PositiveFloat = Field(10.0, description="Time to receive the headers of a request.")
    body_timeout_s: PositiveFloat = Field(30.0, description="Time to receive a body (NDJSON: its next bytes).")
    write_timeout_s: PositiveFloat = Field(
        30.0, description="Time in which a caller must take some of its answer; then its connection is closed."
    )
    drain_timeout_s: NonNegativeFloat = Field(20.0, description="Time for accepted requests after SIGTERM.")

    key_hashes: Listed[KeyHash] = Field(
        (), description="SHA-256 of the API keys that may use the operations; several for rotation."
    )
    admin_key_hashes: Listed[KeyHash] = Field((), description="SHA-256 of the keys that may also change aliases.")
    allow_anonymous: bool = Field(
        False, description="Serve without keys although the address is not loopback, where something else guards it."
    )
    allowed_hosts: Listed[str] = Field(
        (), description="Host names that requests may name; unset: loopback names on loopback, elsewhere any."
    )
    allowed_origins: Listed[Origin] = Field(
        (), description="Origins whose pages may call the service (CORS), `*` for any; unset: its own alone."
    )

    shadow_share: float = Field(
        0.1, ge=0, le=1, description="Share of scored requests that the version behind `candidate` scores as well."
    )
    drift_window_rows: PositiveInt = Field(
        100_000, description="Rows after which the live distribution counts half; older traffic fades."
    )
    alert_values: bool = Field(
        False, description="Keep the values of the rows behind the last alerts in memory, and show them in the console."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["json", "console"] = Field("json", description="One JSON object a line, or text for people.")
    access_log: bool = Field(False, description="Log a line for each answered request; failures are always logged.")
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector (OTLP over HTTP) that traces go to; unset: none."
    )
    trace_share: float = Field(0.1, ge=0, le=1, description="Share of requests traced, unless the caller says.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(FILE_VARIABLE)
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return (init_settings, env_settings, *toml)

    @property
    def keys_required(self) -> bool:
        return bool(self.key_hashes or self.admin_key_hashes)

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)

    def check_access(self) -> None:
        """Refuse to serve strangers by accident.

        Raises:
            ConfigurationError: no key is set and the address can be reached from other machines.
        """
        if not (self.keys_required or self.on_loopback or self.allow_anonymous):
            raise ConfigurationError(
                f"{self.host} can be reached from other machines: set {ENV_PREFIX}KEY_HASHES (see `autoencoder key`), "
                f"or {ENV_PREFIX}ALLOW_ANONYMOUS=true where something else guards the service."
            )


def check_variables(names: Iterable[str]) -> None:
    """Refuse names of environment variables that begin as ours do and mean nothing.

    Raises:
        ConfigurationError: one sentence that names the first one, and the nearest that there is.
    """
    known = OTHER_VARIABLES | {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(names):
        if not name.startswith(ENV_PREFIX) or name in known or _SERVICE_LINK.search(name):
            continue
        nearest = get_close_matches(name.removeprefix(ENV_PREFIX), [each.removeprefix(ENV_PREFIX) for each in known], 1)
        hint = f"did you mean {ENV_PREFIX}{nearest[0]}?" if nearest else "`autoencoder settings` lists all there are."
        raise ConfigurationError(f"There is no variable {name}; {hint}")


def load_settings(**arguments: Any) -> Settings:
    """Settings from arguments (None = not given), environment, file and defaults.

    Raises:
        ConfigurationError: one sentence that names the first wrong setting.
    """
    check_variables(os.environ)
    file = os.environ.get(FILE_VARIABLE)
    if file and not Path(file).is_file():
        raise ConfigurationError(f"{FILE_VARIABLE} names a file that does not exist: {file}")
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ConfigurationError(f"Setting '{name}' ({ENV_PREFIX}{name.upper()}): {first['msg']}.") from error
    except ValueError as error:  # a TOML file that does not parse
        raise ConfigurationError(f"The settings file cannot be read: {error}") from error
