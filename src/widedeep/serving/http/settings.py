"""Settings: what an operator may choose about the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from widedeep.errors import ConfigError
from widedeep.options import check_types
from widedeep.serving.candidates import MAX_VALUES

RequestLog = Literal["all", "errors", "none"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits, times and doors of the server; the defaults suit a ranker behind a load balancer."""

    host: str = "127.0.0.1"  # The address to bind; loopback unless told otherwise
    port: int = 8080  # The port; 0 takes a free one
    workers: int = 1  # Processes that share the port; rates of keys are divided by it
    queue: int | None = None  # Requests that may be waiting or computed at once; more get 503
    # How long a request may be expected to wait in the queue, in milliseconds
    max_wait_ms: float = 1_000.0
    threads: int = 2  # Threads for long computations; short ones run where they were read
    inline_ms: float = 2.0  # What counts as short, in milliseconds
    # How long a caller is taken to wait when it does not say, in milliseconds
    deadline_ms: float = 5_000.0
    longest_deadline_ms: float = 60_000.0  # The most that a caller may ask for
    max_body: int = 16 << 20  # Largest body in bytes, after decompression; larger ones get 413
    max_candidates: int = 100_000  # Most rows or candidates in a request; more get 413
    # Most values that a request may come to, over all its rows or candidates: ids, combinations of
    # crosses, numbers; more get 413
    max_values: int = MAX_VALUES
    max_connections: int = 4_096  # Open connections; further ones are closed at once
    head_timeout_s: float = 10.0  # Seconds in which a request's head must have come
    body_timeout_s: float = 10.0  # Seconds in which its body must have come, else 408
    write_timeout_s: float = 30.0  # Seconds in which the caller must have taken the answer
    idle_timeout_s: float = 75.0  # Seconds that a connection stays open without a request
    drain_s: float = 25.0  # Seconds that requests have to finish after SIGTERM
    # Seconds after SIGTERM in which the server goes on while it is not ready, so that load
    # balancers turn away first
    drain_delay_s: float = 2.0
    keys: str | None = None  # A TOML file of API keys; None asks for no key
    admin: bool = False  # Open the endpoints that load, unload and roll back; needs an admin key
    # Names by which operators may reach those endpoints, beside the address that is bound and
    # loopback's names
    admin_hosts: tuple[str, ...] = ()
    # Show a page at ``/`` to try requests on; it shows the requests stored in the bundles
    page: bool = True
    # The catalogue's column that recommendations take the most popular items by; None takes the
    # order of its rows
    popularity: str | None = None
    # The catalogue's column that ``most_of_each`` of a recommendation is about
    category: str | None = None
    tls_certificate: str | None = None  # A PEM file; None speaks plain HTTP
    tls_key: str | None = None  # Its key
    tls_client_ca: str | None = None  # Certificates that callers must be signed by
    request_log: RequestLog = "errors"  # Which requests are logged

    def __post_init__(self) -> None:
        check_types(self, "the server")
        for name in (
            *("workers", "queue", "threads", "deadline_ms", "longest_deadline_ms", "max_body"),
            *("max_candidates", "max_values", "max_connections"),
            *("head_timeout_s", "body_timeout_s"),
            *("max_wait_ms",),
            *("write_timeout_s", "idle_timeout_s", "drain_s"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"got {name}={value}, expected a number above 0")
        if not self.drain_delay_s >= 0:
            raise ConfigError(f"got drain_delay_s={self.drain_delay_s}, expected at least 0")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"got port={self.port}, expected 0 to 65535")
        if self.admin and self.keys is None:
            raise ConfigError(
                "got admin=True without keys; whoever reaches the port could unload the model: "
                "name a file of keys, one of them with admin = true"
            )
        if (self.tls_key or self.tls_client_ca) and not self.tls_certificate:
            raise ConfigError("got a TLS key or client CA without a certificate; name one")
