"""TLS, client certificates, users and passwords, against a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from mesh.core.errors import RegistryMisconfigured, RegistryRefused, RegistryUnavailable
from mesh.core.types import Node, NodeId
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_client import EtcdClient
from mesh.registry.keys import node_key
from mesh.registry.mirror import Mirror
from mesh.registry.records import encode
from mesh.wire.transport import TlsConfig
from tests.fixtures.certs import make_certs
from tests.fixtures.etcd import EtcdServer, eventually
from tests.fixtures.etcd_users import ROOT, etcdctl, set_password, turn_on
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


@pytest.fixture
async def guarded(new_etcd: Callable[..., EtcdServer]) -> EtcdServer:
    """An etcd with authentication on: `mesh` may use /mesh/v1/ and nothing else."""
    server = new_etcd()
    await server.start()
    turn_on(server)
    return server


def user_config(server: EtcdServer, password: str = "secret", *, timeout_s: float = 60.0) -> RegistryConfig:
    return RegistryConfig(endpoints=(server.address,), user="mesh", password=password, timeout_s=timeout_s)


async def test_a_user_with_a_password_may_use_the_meshs_keys(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        await client.wait_ready(lambda _: None)
        await put_get_and_watch(client)


async def test_a_user_without_permission_is_told_so_by_every_call(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        with pytest.raises(RegistryRefused, match="permission denied; grant the registry's user"):
            await client.put("/elsewhere", b"")
        async with aclosing(client.watch("/elsewhere", after=0)) as batches:
            batch = await anext(batches)
            assert not batch.live
            assert "permission denied" in batch.why


async def test_a_watch_goes_on_when_its_permission_is_given(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client, aclosing(client.watch("/elsewhere", after=0)) as batches:
        assert not (await anext(batches)).live
        grant = ("role", "grant-permission", "--prefix=true", "mesh", "readwrite", "/elsewhere")
        etcdctl(guarded, *ROOT, *grant)
        assert (await asyncio.wait_for(anext(batches), 60)).live


async def test_a_wrong_password_is_said_and_the_right_one_waited_for(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded, "wrong")) as client:
        said: list[str] = []
        ready = asyncio.create_task(client.wait_ready(said.append))
        await eventually(lambda: bool(said), what="told that it waits")
        assert "did not take user 'mesh'" in said[0]
        assert not ready.done()
        set_password(guarded, "wrong")
        await asyncio.wait_for(ready, 60)
        # It was asked many times meanwhile, and said once.
        assert len(said) == 1


async def test_a_call_with_a_wrong_password_is_refused_at_once(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded, "wrong")) as client:
        for _ in range(2):
            with pytest.raises(
                RegistryRefused, match=r"did not take user 'mesh'.*check the registry's user and password"
            ):
                await client.get("/mesh/v1/a")


async def test_a_password_is_read_again_from_its_file(guarded: EtcdServer, tmp_path: Path) -> None:
    """A password changes, and etcd restarts, which forgets the tokens: the file has the new one by then."""
    file = tmp_path / "password"
    file.write_text("secret\n")
    config = RegistryConfig(endpoints=(guarded.address,), user="mesh", password_file=str(file), timeout_s=60)
    async with client_of(config) as client:
        await client.put("/mesh/v1/a", b"1")
        set_password(guarded, "another")
        await guarded.stop()
        await guarded.start()
        with pytest.raises(RegistryRefused, match="did not take user"):
            await client.get("/mesh/v1/a")
        file.unlink()
        with pytest.raises(RegistryUnavailable, match=r"expected the password .* in .*password: .*it is read again"):
            await client.get("/mesh/v1/a")
        file.write_text("another\n")
        assert await client.get("/mesh/v1/a") is not None


async def test_a_password_file_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path) -> None:
    config = RegistryConfig(user="mesh", password_file=str(tmp_path / "none"))
    async with client_of(config) as client:
        with pytest.raises(RegistryMisconfigured, match="expected the password of the registry's user 'mesh' in"):
            await client.wait_ready(lambda _: None)


async def test_no_user_where_one_is_wanted_is_refused(guarded: EtcdServer) -> None:
    async with client_of(RegistryConfig(endpoints=(guarded.address,), timeout_s=60)) as client:
        with pytest.raises(RegistryRefused, match="user name is empty"):
            await client.put("/mesh/v1/a", b"")


async def test_a_token_that_etcd_forgot_is_renewed_by_calls_and_watches(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        before = await client.put("/mesh/v1/a", b"1")
        token = client._caller._token._value
        async with aclosing(client.watch("/mesh/v1/", after=before)) as batches:
            await client.put("/mesh/v1/a", b"2")
            assert (await anext(batches)).events
            # Tokens live in the memory of etcd.
            await guarded.stop()
            await guarded.start()
            await client.put("/mesh/v1/a", b"3")
            assert client._caller._token._value != token
            batch = await anext(batches)
            while not batch.events:
                batch = await anext(batches)
            assert batch.events[0].entry is not None
            assert batch.events[0].entry.value == b"3"


async def test_a_mirror_that_may_no_longer_read_keeps_its_view_and_says_why(guarded: EtcdServer) -> None:
    async with client_of(user_config(guarded)) as client:
        await client.put(node_key(NodeId("a")), encode(Node(NodeId("a"), "127.0.0.1:1", "i1")))
        mirror = Mirror(client)
        following = asyncio.create_task(mirror.run())
        await asyncio.wait_for(mirror.wait_synced(), 60)
        assert mirror.why == ""
        rights = ("mesh", "--prefix=true", "/mesh/v1/")
        etcdctl(guarded, *ROOT, "role", "revoke-permission", *rights)
        await guarded.stop()
        await guarded.start()
        await eventually(lambda: "permission denied" in mirror.why, what="the reason")
        assert not mirror.live
        assert not following.done()
        assert list(mirror.view.nodes) == ["a"]
        grant = ("role", "grant-permission", "mesh", "--prefix=true", "readwrite", "/mesh/v1/")
        etcdctl(guarded, *ROOT, *grant)
        await eventually(lambda: mirror.live, what="following again")
        assert mirror.why == ""
        following.cancel()


async def test_a_user_and_a_dead_endpoint_go_together(guarded: EtcdServer) -> None:
    endpoints = (f"127.0.0.1:{free_port()}", guarded.address)
    async with client_of(RegistryConfig(endpoints=endpoints, user="mesh", password="secret", timeout_s=60)) as client:
        async with aclosing(client.watch("/mesh/v1/", after=0)) as batches:
            assert not (await anext(batches)).live
            assert (await asyncio.wait_for(anext(batches), 60)).live
        await put_get_and_watch(client)


async def test_a_user_may_be_given_before_authentication_is_on_and_after_it_was_turned_off(guarded: EtcdServer) -> None:
    etcdctl(guarded, *ROOT, "auth", "disable")
    async with client_of(user_config(guarded)) as client:
        await put_get_and_watch(client)
        etcdctl(guarded, "auth", "enable")
        await put_get_and_watch(client)
        etcdctl(guarded, *ROOT, "auth", "disable")
        await put_get_and_watch(client)
