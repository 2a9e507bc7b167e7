"""Who we are for the API server: in a pod, by a kubeconfig, and after files were replaced."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from pathlib import Path

import pytest
import trustme
import yaml

from felixpy.config import DatastoreType, Settings
from felixpy.kubernetes import access as module
from felixpy.kubernetes.access import Access, AccessError, Identity, Material, from_kubeconfig, in_cluster
from felixpy.kubernetes.client import Api, ApiError
from felixpy.sources.chosen import cluster_identity, datastore
from tests.kubernetes.api_server import PATH, FakeServer, thing


def account(folder: Path, token: str = "t1") -> Path:
    (folder / "token").write_text(token + "\n")
    (folder / "ca.crt").write_text("")
    return folder


def kubeconfig(path: Path, cluster: dict[str, object], user: dict[str, object]) -> Path:
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("host", "server"), [("10.96.0.1", "https://10.96.0.1:6443"), ("fd96::1", "https://[fd96::1]:6443")]
)
def test_in_a_pod(tmp_path: Path, host: str, server: str) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"}
    found = in_cluster(environ, account(tmp_path))
    assert found is not None
    assert found.server == server
    assert in_cluster({}, tmp_path) is None
    (tmp_path / "token").unlink()
    assert in_cluster(environ, tmp_path) is None


def test_files_of_a_kubeconfig_are_beside_it_and_data_is_base64(tmp_path: Path) -> None:
    pem = base64.b64encode(b"PEM").decode()
    user = {"client-certificate-data": pem, "client-key": "key.pem"}
    path = kubeconfig(tmp_path / "config", {"server": "https://api:6443/", "certificate-authority": "ca.pem"}, user)
    found = from_kubeconfig(path)
    assert found.server == "https://api:6443"
    assert found.ca == Material(tmp_path / "ca.pem")
    assert found.certificate == Material(text="PEM")
    assert found.key == Material(tmp_path / "key.pem")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be used"),
        ("a: 1", "there is no context"),
        ("", "cannot be used"),
        (None, "cannot be read"),
    ],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AccessError, match=reason) as told:
        from_kubeconfig(path)
    assert str(path) in str(told.value)


def test_a_program_that_logs_in_is_refused_clearly(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", {"server": "https://api"}, {"exec": {"command": "aws"}})
    with pytest.raises(AccessError, match="certificate or a token"):
        from_kubeconfig(path)


def test_the_store_is_chosen_by_settings_broker_and_surroundings(tmp_path: Path) -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    folder = account(tmp_path)
    assert datastore(Settings(), pod, folder) is DatastoreType.KUBERNETES
    assert datastore(Settings(mqtt_host="broker"), pod, folder) is DatastoreType.MQTT
    assert datastore(Settings(), {}, folder) is DatastoreType.DIRECTORY
    forced = Settings(mqtt_host="broker", datastore_type=DatastoreType.KUBERNETES)
    assert datastore(forced, {}, folder) is DatastoreType.KUBERNETES
    assert not forced.mqtt_enabled
    with pytest.raises(AccessError, match="FELIX_KUBECONFIG"):
        cluster_identity(forced, {}, tmp_path / "nowhere")


def test_a_token_that_the_server_takes_no_longer_is_read_again(tmp_path: Path) -> None:
    async def run() -> None:
        server = FakeServer()
        account(tmp_path, "old")
        async with server.running(), Api(Access(Identity(server.url, token=Material(tmp_path / "token")))) as api:
            await api.request("GET", PATH)
            account(tmp_path, "new")

            async def unauthorized(request: object) -> object:
                return server.refusal(401, "Unauthorized", "Unauthorized")

            server.script.append(unauthorized)  # type: ignore[arg-type]
            await api.request("GET", PATH)
        told = [headers["Authorization"] for headers in server.headers]
        assert told == ["Bearer old", "Bearer old", "Bearer new"]

    asyncio.run(run())


def test_a_token_is_read_again_before_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(Identity("http://api", token=Material(account(tmp_path) / "token")))
    assert access.headers() == {"Authorization": "Bearer t1"}
    account(tmp_path, "t2")
    now = time.monotonic()
    assert access.headers() == {"Authorization": "Bearer t1"}
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.TOKEN_SECONDS + 1)
    assert access.headers() == {"Authorization": "Bearer t2"}


def test_a_new_authority_is_trusted_without_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        first, second = trustme.CA(), trustme.CA()
        ca = tmp_path / "ca.crt"
        first.cert_pem.write_to_path(str(ca))
        access = Access(Identity("", Material(ca)))
        for authority, trusted in ((first, True), (second, False)):
            server = FakeServer()
            server.put(thing("a"))
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            async with server.running(ssl_context=context), Api(access) as api:
                access.server = server.url
                access._identity = Identity(server.url, Material(ca))
                if not trusted:
                    with pytest.raises(ApiError, match="cannot be reached") as refused:
                        await api.request("GET", PATH)
                    assert refused.value.status == 0
                    assert "certificate verify failed" in str(refused.value)
                    assert "object at 0x" not in str(refused.value)
                    authority.cert_pem.write_to_path(str(ca))
                await api.request("GET", PATH)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nobody.invalid", "Name or service not known|Temporary failure in name resolution"),
    ],
)
def test_why_a_server_cannot_be_reached_is_said_in_words(host: str, words: str) -> None:
    async def run() -> None:
        async with Api(Access(Identity(f"https://{host}"))) as api:
            with pytest.raises(ApiError, match=f"the API server https://{host} cannot be reached: .*({words})$"):
                await api.request("GET", PATH)

    asyncio.run(run())


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    assert "hush" not in repr(Identity("https://api", token=Material(text="hush"), key=Material(text="hush")))
