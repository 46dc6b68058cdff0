"""TLS, client certificates, users and passwords, against a real etcd."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from mesh.core.errors import RegistryRefused, RegistryUnavailable
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.mirror import Mirror
from mesh.wire.transport import TlsConfig
from tests.fixtures.certs import make_certs
from tests.fixtures.etcd import EtcdServer
from tests.fixtures.mesh import free_port


@asynccontextmanager
async def client_of(config: RegistryConfig) -> AsyncIterator[EtcdClient]:
    client = EtcdClient(config)
    try:
        yield client
    finally:
        await client.close()


async def put_get_and_watch(client: EtcdClient) -> None:
    revision = await client.put("/mesh/v1/a", b"1")
    entry = await client.get("/mesh/v1/a")
    assert entry is not None
    assert entry.value == b"1"
    assert await client.keep_alive(await client.grant(10)) == 10.0
    async with aclosing(client.watch("/mesh/v1/", after=revision - 1)) as batches:
        assert [event.key for event in (await anext(batches)).events] == ["/mesh/v1/a"]


async def test_a_tls_etcd_is_trusted_by_its_root(new_etcd: Callable[..., EtcdServer], tmp_path: Path) -> None:
    certs = make_certs(tmp_path / "certs")
    server = new_etcd(certs=certs)
    await server.start()
    tls = TlsConfig(ca=str(certs.ca))
    async with client_of(RegistryConfig(endpoints=(server.address,), tls=tls, timeout_s=60)) as client:
        await put_get_and_watch(client)


async def test_a_tls_etcd_of_another_root_is_not_talked_to(new_etcd: Callable[..., EtcdServer], tmp_path: Path) -> None:
    server = new_etcd(certs=make_certs(tmp_path / "certs"))
    await server.start()
    tls = TlsConfig(ca=str(make_certs(tmp_path / "others").ca))
    async with client_of(RegistryConfig(endpoints=(server.address,), tls=tls, timeout_s=1.0)) as client:
        with pytest.raises(RegistryUnavailable):
            await client.get("/t/a")


async def test_an_etcd_that_wants_client_certificates_gets_one(
    new_etcd: Callable[..., EtcdServer], tmp_path: Path
) -> None:
    certs = make_certs(tmp_path / "certs")
    server = new_etcd(certs=certs, client_certs=True)
    await server.start()
    mtls = TlsConfig(ca=str(certs.ca), cert=str(certs.client_cert), key=str(certs.client_key))
    async with client_of(RegistryConfig(endpoints=(server.address,), tls=mtls, timeout_s=60)) as client:
        await put_get_and_watch(client)
    without = TlsConfig(ca=str(certs.ca))
    async with client_of(RegistryConfig(endpoints=(server.address,), tls=without, timeout_s=1.0)) as client:
        with pytest.raises(RegistryUnavailable):
            await client.get("/t/a")


async def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tls = TlsConfig(ca=str(tmp_path / "none.pem"))
    async with client_of(RegistryConfig(tls=tls)) as client:
        with pytest.raises(RegistryRefused, match=r"none\.pem"):
            await client.get("/t/a")


def etcdctl(server: EtcdServer, *args: str) -> None:
    subprocess.run(
        ["etcdctl", "--endpoints", server.address, *args],
        check=True,
        capture_output=True,
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )


@pytest.fixture
async def guarded(new_etcd: Callable[..., EtcdServer]) -> EtcdServer:
    """An etcd with authentication on: `mesh` may use /mesh/v1/ and nothing else."""
    server = new_etcd()
    await server.start()
    for args in (
        ("user", "add", "root:top"),
        ("role", "add", "root"),
        ("user", "grant-role", "root", "root"),
        ("role", "add", "mesh"),
        ("role", "grant-permission", "mesh", "--prefix=true", "readwrite", "/mesh/v1/"),
        ("user", "add", "mesh:secret"),
        ("user", "grant-role", "mesh", "mesh"),
        ("auth", "enable"),
    ):
        etcdctl(server, *args)
    return server


def user_config(server: EtcdServer, password: str = "secret", *, timeout_s: float = 60.0) -> RegistryConfig:
    return RegistryConfig(endpoints=(server.address,), user="mesh", password=password, timeout_s=timeout_s)


async def test_a_user_with_a_password_may_use_the_meshs_keys(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        await client.wait_ready(lambda _: None)
        await put_get_and_watch(client)


async def test_a_user_without_permission_is_told_so_by_every_call(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        with pytest.raises(RegistryRefused, match="permission denied"):
            await client.put("/elsewhere", b"")
        with pytest.raises(RegistryRefused, match="permission denied"):
            async with aclosing(client.watch("/elsewhere", after=0)) as batches:
                await anext(batches)


async def test_a_wrong_password_is_told_and_not_waited_for(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded, "wrong")) as client:
        with pytest.raises(RegistryRefused, match="did not take user 'mesh'"):
            await client.wait_ready(lambda _: None)


async def test_no_user_where_one_is_wanted_is_refused(guarded: EtcdServer) -> None:
    async with client_of(RegistryConfig(endpoints=(guarded.address,), timeout_s=60)) as client:
        with pytest.raises(RegistryRefused, match="user name is empty"):
            await client.put("/mesh/v1/a", b"")


async def test_a_token_that_etcd_forgot_is_renewed_by_calls_and_watches(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        before = await client.put("/mesh/v1/a", b"1")
        token = client._caller._token
        async with aclosing(client.watch("/mesh/v1/", after=before)) as batches:
            await client.put("/mesh/v1/a", b"2")
            assert (await anext(batches)).events
            # Tokens live in the memory of etcd.
            await guarded.stop()
            await guarded.start()
            await client.put("/mesh/v1/a", b"3")
            assert client._caller._token != token
            batch = await anext(batches)
            while not batch.events:
                batch = await anext(batches)
            assert batch.events[0].entry is not None
            assert batch.events[0].entry.value == b"3"


async def test_a_mirror_that_may_no_longer_read_ends_with_the_reason(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        mirror = Mirror(client)
        following = asyncio.create_task(mirror.run())
        await asyncio.wait_for(mirror.wait_synced(), 60)
        etcdctl(guarded, "--user", "root:top", "role", "revoke-permission", "mesh", "--prefix=true", "/mesh/v1/")
        await guarded.stop()
        await guarded.start()
        with pytest.raises(RegistryRefused, match="permission denied"):
            await asyncio.wait_for(following, 60)


async def test_a_user_and_a_dead_endpoint_go_together(guarded: EtcdServer) -> None:
    endpoints = (f"127.0.0.1:{free_port()}", guarded.address)
    async with client_of(RegistryConfig(endpoints=endpoints, user="mesh", password="secret", timeout_s=60)) as client:
        async with aclosing(client.watch("/mesh/v1/", after=0)) as batches:
            assert not (await anext(batches)).live
            assert (await asyncio.wait_for(anext(batches), 60)).live
        await put_get_and_watch(client)


async def test_a_user_for_an_etcd_without_authentication_is_refused(shared_etcd: EtcdServer) -> None:
    async with client_of(user_config(shared_etcd)) as client:
        with pytest.raises(RegistryRefused, match="authentication is not enabled"):
            await client.get("/t/a")
