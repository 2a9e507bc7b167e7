"""Where the API server is, whom we trust and who we are: in a pod, or by a kubeconfig.

Files of certificates and tokens are replaced while we run (the kubelet renews a pod's token every hour): whoever opens
a connection asks here anew, and the files are read again when they are others. It must never log a token or a key.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from felixpy.plain_error import PlainError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS = 60.0
"""A token file is read again after so long; client-go does the same."""


class AccessError(PlainError):
    """The API server cannot be named, or our certificates cannot be read."""


class Material(Struct, frozen=True):
    """Something that is in a file or was written out: PEM text or a token."""

    path: Path | None = None
    text: str = ""

    def __repr__(self) -> str:
        return f"Material({self.path!r})"

    def read(self) -> str:
        """Its text.

        Raises:
            AccessError
        """
        if self.path is None:
            return self.text
        try:
            return self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f"{self.path} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def stamp(self) -> tuple[int, ...]:
        """Differs when the file is another one. The kubelet swaps a symbolic link, which ``stat`` follows."""
        if self.path is None:
            return ()
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


class Identity(Struct, frozen=True):
    """What a kubeconfig or a pod says of server and user."""

    server: str
    ca: Material | None = None
    token: Material | None = None
    certificate: Material | None = None
    key: Material | None = None
    insecure: bool = False
    server_name: str | None = None


def in_cluster(environ: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT) -> Identity | None:
    """Who a pod is; None outside a pod, or in one without a token."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (folder / "token").exists():
        return None
    return Identity(f"https://{_bracketed(host)}:{port}", Material(folder / "ca.crt"), Material(folder / "token"))


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def from_kubeconfig(path: Path) -> Identity:
    """Server and user of the current context.

    Raises:
        AccessError: it cannot be read, or asks for a way to log in that the agent does not have.
    """
    import yaml  # only here: what a pod or a node with a broker need not load

    try:
        config = yaml.safe_load(path.read_text())
        context = _named(config, "contexts", "context", config.get("current-context"))
        cluster = _named(config, "clusters", "cluster", context.get("cluster"))
        user = _named(config, "users", "user", context.get("user")) if context.get("user") else {}
        if "exec" in user or "auth-provider" in user:
            raise AccessError(
                f"{path}: the user {context.get('user')} logs in by a program; give the agent a client certificate or "
                "a token instead"
            )
        folder = path.parent
        token = user.get("token")
        return Identity(
            server=str(cluster["server"]).rstrip("/"),
            ca=_material(cluster, "certificate-authority", folder),
            token=Material(text=str(token)) if token else _material(user, "tokenFile", folder),
            certificate=_material(user, "client-certificate", folder),
            key=_material(user, "client-key", folder),
            insecure=bool(cluster.get("insecure-skip-tls-verify")),
            server_name=cluster.get("tls-server-name"),
        )
    except OSError as error:
        raise AccessError(f"the kubeconfig {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, AttributeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise AccessError(f"the kubeconfig {path} cannot be used: {reason}; check it with kubectl") from None


def _named(config: Mapping[str, Any], listing: str, what: str, name: object) -> Mapping[str, Any]:
    for each in config.get(listing) or ():
        if each.get("name") == name:
            found: Mapping[str, Any] = each.get(what) or {}
            return found
    raise ValueError(f"there is no {what} {name!r} in {listing}")


def _material(holder: Mapping[str, Any], name: str, folder: Path) -> Material | None:
    """``name-data`` (base64) or the file ``name``, relative to the kubeconfig as kubectl takes it."""
    if data := holder.get(f"{name}-data"):
        try:
            return Material(text=base64.b64decode(str(data), validate=True).decode())
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"{name}-data is not base64 of PEM text") from None
    if path := holder.get(name):
        return Material(folder / str(path))
    return None


class Access:
    """Connections as one identity: the TLS context and the headers, as the files are now."""

    def __init__(self, identity: Identity) -> None:
        self.server = identity.server
        self.server_name = identity.server_name
        self._identity = identity
        self._stamp: object = None
        self._context: ssl.SSLContext | None = None
        self._token = ""
        self._token_until = 0.0

    @property
    def port(self) -> int:
        """The server's."""
        parts = urlsplit(self.server)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def context(self) -> ssl.SSLContext | None:
        """For a new connection; another object after a certificate was replaced. None without TLS.

        Raises:
            AccessError
        """
        identity = self._identity
        if not identity.server.startswith("https:"):
            return None
        stamp = tuple(each.stamp() for each in (identity.ca, identity.certificate, identity.key) if each)
        if self._context is None or stamp != self._stamp:
            self._context, self._stamp = _context(identity), stamp
        return self._context

    def headers(self) -> dict[str, str]:
        """Who we are, if not by a certificate.

        Raises:
            AccessError
        """
        if self._identity.token is None:
            return {}
        if time.monotonic() >= self._token_until:
            self._token = self._identity.token.read().strip()
            self._token_until = time.monotonic() + TOKEN_SECONDS
        return {"Authorization": f"Bearer {self._token}"}

    def refused(self) -> None:
        """The server takes the token no longer: read it again before it is used again."""
        self._token_until = 0.0


def _context(identity: Identity) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=identity.ca.read() if identity.ca else None)
        if identity.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if identity.certificate and identity.key:
            _load_pair(context, identity.certificate, identity.key)
    except (ssl.SSLError, ValueError) as error:
        raise AccessError(f"certificates for {identity.server} cannot be used: {error}") from None
    except OSError as error:
        raise AccessError(f"certificates for {identity.server} cannot be read: {error.strerror}") from None
    return context


def _load_pair(context: ssl.SSLContext, certificate: Material, key: Material) -> None:
    """Python's TLS takes a pair from files only: what came as text stands in one that only we can read, and is gone."""
    if certificate.path and key.path:
        context.load_cert_chain(certificate.path, key.path)
        return
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(f"{certificate.read()}\n{key.read()}")
        file.flush()
        context.load_cert_chain(file.name)
