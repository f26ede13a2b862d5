"""The guarded fetch reaches the public internet at checked addresses, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from turnwire.common.v1 import error_pb2
from turnwire.errors import DocumentRefused
from turnwire.runtime.addresses import is_public
from turnwire.runtime.fetch import Fetched, GuardedFetcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_MIB = 1024 * 1024
SERVICES = str(Path(__file__).resolve().parents[2] / "services")


@dataclass(slots=True)
class _Server:
    """Answers each connection with what it is told, and remembers who came."""

    port: int
    requests: list[str] = field(default_factory=list[str])

    def url(self, host: str, path: str = "/page") -> str:
        return f"http://{host}:{self.port}{path}"


Answer = bytes | Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _serving(answer: Answer, host: str = "127.0.0.1") -> AsyncGenerator[_Server]:
    server = _Server(0)
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            server.requests.append(head)
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(head, writer)
        writer.close()

    listening = await asyncio.start_server(handle, host, 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for writer in writers:
            writer.close()
        await listening.wait_closed()


def _answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _to(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """Returns a resolver that says one address after the other, and the last one again and again."""
    left = list(addresses)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [left.pop(0) if len(left) > 1 else left[0]]

    return resolve


async def _refused(fetcher: GuardedFetcher, url: str, *, max_bytes: int = _MIB, seconds: float = 10) -> DocumentRefused:
    with pytest.raises(DocumentRefused) as refused:
        await fetcher.fetch(url, max_bytes=max_bytes, seconds=seconds)
    assert error_pb2.ERROR_REASON_DOCUMENT_REFUSED == refused.value.reason
    return refused.value


async def test_what_is_behind_a_url_comes_with_its_type_and_place():
    async with _serving(_answer(b"hello", "content-type: text/plain; charset=utf-8")) as server:
        fetcher = GuardedFetcher(allow_hosts={"localhost"})
        fetched = await fetcher.fetch(server.url("localhost", "/a?b=c#d"), max_bytes=5, seconds=10)
        assert Fetched(b"hello", "text/plain; charset=utf-8", server.url("localhost", "/a?b=c")) == fetched
        (head,) = server.requests
        assert head.startswith("GET /a?b=c HTTP/1.1\r\n")
        assert f"Host: localhost:{server.port}\r\n" in head


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1.",
        "127.9.8.7",
        "127.1",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "0x7f000001",
        "0x7f.0.0.1",
        "0x",
        "①②⑦.⓪.⓪.①",
        "127%2e0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1%25lo]",
    ],
)
async def test_this_machine_is_reached_under_none_of_its_names(host: str):
    async with _serving(_answer(b"inside")) as server:
        # Where it is allowed, the same server answers.
        assert (
            b"inside"
            == (
                await GuardedFetcher(allow_hosts={"127.0.0.1"}).fetch(server.url("127.0.0.1"), max_bytes=10, seconds=10)
            ).data
        )
        await _refused(GuardedFetcher(), server.url(host))
        assert 1 == len(server.requests)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_this_machine_is_not_reached_by_ipv6():
    async with _serving(_answer(b"inside"), "::1") as server:
        allowed = await GuardedFetcher(allow_hosts={"::1"}).fetch(server.url("[::1]"), max_bytes=10, seconds=10)
        assert b"inside" == allowed.data
        await _refused(GuardedFetcher(), server.url("[::1]"))
        assert 1 == len(server.requests)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com/",
        "data:text/plain,x",
        "unix:///run/x.sock",
        "//example.com/",
        "/page",
        "page",
        "",
        "http://",
        "http:///page",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://:password@example.com/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://[::1/",
    ],
)
async def test_only_plain_urls_of_the_web_are_fetched(url: str):
    async def never(host: str, port: int) -> Sequence[str]:
        raise AssertionError(f"{host} was looked up")

    refused = await _refused(GuardedFetcher(allow_hosts={"example.com"}, resolve=never), url)
    assert "password" not in refused.message.replace("holds a user or a password", "")


@pytest.mark.parametrize("host", ["134744072", "8.8.2056", "0x8.8.8.8", "010.8.8.8", "8.8.8.8.", "8.8.8", "1.2.3.4.5"])
async def test_a_number_that_programs_read_differently_is_refused_and_never_looked_up(host: str):
    async def never(host: str, port: int) -> Sequence[str]:
        raise AssertionError(f"{host} was looked up")

    refused = await _refused(GuardedFetcher(resolve=never), f"http://{host}/")
    assert "its host is an address in an ambiguous form" in refused.message


@pytest.mark.parametrize(
    "address",
    [
        *(
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
        ),
        *("172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1"),
        *("203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
        *(
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::8.8.8.8",
            "64:ff9b::a00:1",
            "64:ff9b::808:808",
            "100::1",
        ),
        *("64:ff9b:1::1", "2001::1", "2001:2::1", "2001:10::1", "2001:db8::1", "2002:a00:1::", "3fff::1", "5f00::1"),
        *("fc00::1", "fd12::1", "fe80::1", "fec0::1", "ff02::1", "4000::1"),
    ],
)
async def test_a_name_that_leads_into_a_network_is_refused(address: str):
    assert not is_public(ipaddress.ip_address(address))
    refused = await _refused(GuardedFetcher(resolve=_to(address)), "http://innocent.example/")
    assert "addresses" == refused.metadata["limit"]
    assert "innocent.example is not on the public internet" in refused.message


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "100.63.0.1",
        "100.128.0.1",
        "172.32.0.1",
        "192.0.3.1",
        "2606:4700::1",
        "2a00:1450::1",
        "2001:4860::8888",
    ],
)
def test_addresses_of_the_public_internet_are_public(address: str):
    assert is_public(ipaddress.ip_address(address))


async def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_checked(monkeypatch: pytest.MonkeyPatch):
    # The first answer is checked, and whoever asks again gets another one.
    async with _serving(_answer(b"inside")) as server:
        monkeypatch.setattr("turnwire.runtime.fetch.is_public", lambda address: str(address) == "127.0.0.1")
        looked_up: list[str] = []

        async def resolve(host: str, port: int) -> Sequence[str]:
            looked_up.append(host)
            return ["127.0.0.1"] if len(looked_up) == 1 else ["127.0.0.2"]

        # The system has no address for such a name: only the resolver's answer leads anywhere.
        fetcher = GuardedFetcher(resolve=resolve)
        fetched = await fetcher.fetch(server.url("rebinding.invalid"), max_bytes=10, seconds=10)
        assert b"inside" == fetched.data
        assert ["rebinding.invalid"] == looked_up


async def test_a_name_that_changes_to_this_machine_is_refused():
    async with _serving(_answer(b"inside")) as server:
        fetcher = GuardedFetcher(allow_hosts=(), resolve=_to("127.0.0.1", "8.8.8.8"))
        await _refused(fetcher, server.url("rebinding.invalid"))
        assert [] == server.requests


async def test_of_several_addresses_only_the_public_ones_are_used(monkeypatch: pytest.MonkeyPatch):
    async with _serving(_answer(b"outside"), "127.0.0.2") as server:
        monkeypatch.setattr("turnwire.runtime.fetch.is_public", lambda address: str(address) == "127.0.0.2")

        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["127.0.0.1", "10.0.0.1", "127.0.0.2"]

        fetched = await GuardedFetcher(resolve=resolve).fetch(server.url("several.invalid"), max_bytes=10, seconds=10)
        assert b"outside" == fetched.data


def _redirect(location: str) -> bytes:
    return _answer(b"", f"location: {location}", status="302 Found")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "[::ffff:7f00:1]"])
async def test_a_redirect_into_this_machine_is_refused(host: str):
    async with _serving(_answer(b"inside")) as inside, _serving(_redirect(inside.url(host))) as server:
        refused = await _refused(GuardedFetcher(allow_hosts={f"127.0.0.1:{server.port}"}), server.url("127.0.0.1"))
        assert server.url("127.0.0.1") in refused.message
        assert 1 == len(server.requests)
        assert [] == inside.requests


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://user:pass@127.0.0.1/", "http://127.0.0.1:0/"]
)
async def test_a_redirect_to_no_plain_url_is_refused(location: str):
    async with _serving(_redirect(location)) as server:
        await _refused(GuardedFetcher(allow_hosts={"127.0.0.1"}), server.url("127.0.0.1"))
        assert 1 == len(server.requests)


async def test_redirects_are_followed_five_times():
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        number = int(head.split()[1].removeprefix("/"))
        writer.write(_answer(b"there") if number == 0 else _redirect(f"/{number - 1}"))
        await writer.drain()

    async with _serving(answer) as server:
        fetcher = GuardedFetcher(allow_hosts={"localhost"})
        fetched = await fetcher.fetch(server.url("localhost", "/5"), max_bytes=10, seconds=10)
        assert (b"there", server.url("localhost", "/0")) == (fetched.data, fetched.final_url)
        server.requests.clear()
        refused = await _refused(fetcher, server.url("localhost", "/6"))
        assert "redirects" == refused.metadata["limit"]
        assert 6 == len(server.requests)


async def test_cookies_and_credentials_go_nowhere():
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        to = _answer(b"there", "set-cookie: a=b")
        writer.write(to if "/there" in head else to.replace(b"200 OK", b"302 Found\r\nlocation: /there"))
        await writer.drain()

    async with _serving(answer) as server:
        await GuardedFetcher(allow_hosts={"localhost"}).fetch(server.url("localhost"), max_bytes=10, seconds=10)
        assert 2 == len(server.requests)
        assert not any("cookie" in head.lower() or "authorization" in head.lower() for head in server.requests)


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch):
    async with _serving(_answer(b"by proxy")) as proxy, _serving(_answer(b"direct")) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url("127.0.0.1", ""))
        monkeypatch.delenv("no_proxy", raising=False)
        fetched = await GuardedFetcher(allow_hosts={"localhost"}).fetch(
            server.url("localhost"), max_bytes=10, seconds=10
        )
        assert b"direct" == fetched.data
        assert [] == proxy.requests


async def _for_ever(head: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def test_an_endless_answer_is_cut_at_the_limit():
    async with _serving(_for_ever) as server:
        refused = await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"), max_bytes=_MIB)
        assert "bytes" == refused.metadata["limit"]


@pytest.mark.parametrize("size", [99, 100, 101])
async def test_the_limit_is_exact_and_what_the_server_says_of_the_size_is_not_believed(size: int):
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
        )
        await writer.drain()

    async with _serving(answer) as server:
        fetcher = GuardedFetcher(allow_hosts={"localhost"})
        if size > 100:
            await _refused(fetcher, server.url("localhost"), max_bytes=100)
        else:
            assert size == len((await fetcher.fetch(server.url("localhost"), max_bytes=100, seconds=10)).data)


async def test_a_slow_answer_is_given_up_in_time():
    held = asyncio.Event()

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        while not held.is_set():
            writer.write(b"x")
            await writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(held.wait(), 0.01)

    async with _serving(answer) as server:
        refused = await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"), seconds=0.3)
        assert "seconds" == refused.metadata["limit"]
        held.set()


async def test_the_time_covers_looking_up_and_every_redirect():
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    refused = await _refused(GuardedFetcher(resolve=resolve), "http://slow.example/", seconds=0.1)
    assert "seconds" == refused.metadata["limit"]

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(_redirect("/again"))
        await writer.drain()

    async with _serving(answer) as server:
        refused = await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"), seconds=0.4)
        assert "seconds" == refused.metadata["limit"]


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(b"unpacked", mtime=0)),
        ("GZIP", gzip.compress(b"unpacked", mtime=0)),
        ("deflate", zlib.compress(b"unpacked")),
        ("deflate", zlib.compress(b"unpacked")[2:-4]),
        ("identity", b"unpacked"),
    ],
)
async def test_packed_answers_are_unpacked(coding: str, packed: bytes):
    async with _serving(_answer(packed, f"content-encoding: {coding}")) as server:
        fetcher = GuardedFetcher(allow_hosts={"localhost"})
        assert b"unpacked" == (await fetcher.fetch(server.url("localhost"), max_bytes=8, seconds=10)).data


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", b"no gzip at all"),
        ("deflate", b"\xff\xff\xff\xff"),
        ("gzip", gzip.compress(b"cut off" * 100, mtime=0)[:-10]),
        ("br", b"what was not asked for"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"twice", mtime=0), mtime=0)),
    ],
)
async def test_what_is_not_packed_as_it_says_is_refused(coding: str, packed: bytes):
    async with _serving(_answer(packed, f"content-encoding: {coding}")) as server:
        await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"))


async def test_a_bomb_is_unpacked_to_the_limit_and_no_further(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    bomb = gzip.compress(bytes(200 * _MIB), 9)

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._inflater = zlib.decompressobj(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            piece = self._inflater.decompress(data, most)
            made.append(len(piece))
            return piece

        def __getattr__(self, name: str) -> object:
            return getattr(self._inflater, name)

    class Zlib:
        MAX_WBITS = zlib.MAX_WBITS
        error = zlib.error
        decompressobj = Counting

    monkeypatch.setattr("turnwire.runtime.fetch.zlib", Zlib)
    async with _serving(_answer(bomb, "content-encoding: gzip")) as server:
        refused = await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"), max_bytes=_MIB)
    assert "bytes" == refused.metadata["limit"]
    assert _MIB < sum(made) <= _MIB + 65536
    assert max(made) <= 65536


@pytest.mark.parametrize(
    "status", ["204 No Content", "206 Partial Content", "304 Not Modified", "404 Not Found", "500 Oops"]
)
async def test_an_answer_that_is_no_document_says_its_status(status: str):
    async with _serving(_answer(b"", status=status)) as server:
        refused = await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"))
        assert f"it answered {status[:3]}" in refused.message


@pytest.mark.parametrize(
    "answer",
    [
        b"no http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000,
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut",
    ],
)
async def test_a_server_that_speaks_no_http_is_refused(answer: bytes):
    async with _serving(answer) as server:
        await _refused(GuardedFetcher(allow_hosts={"localhost"}), server.url("localhost"))


async def test_nobody_there_is_refused_and_so_is_a_name_without_address():
    async with _serving(b"") as server:
        port = server.port
    await _refused(GuardedFetcher(allow_hosts={"127.0.0.1"}), f"http://127.0.0.1:{port}/")

    async def resolve(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    refused = await _refused(GuardedFetcher(resolve=resolve), "http://nowhere.example/")
    assert "no address is known for nowhere.example" in refused.message


async def test_messages_keep_what_may_be_secret_in_a_url():
    refused = await _refused(GuardedFetcher(), "http://127.0.0.1/path?token=hidden#hidden")
    assert "hidden" not in refused.message
    assert "http://127.0.0.1/path" == refused.metadata["document"]


async def test_an_allowed_port_is_no_allowed_host():
    async with _serving(_answer(b"one")) as one, _serving(_answer(b"two")) as two:
        fetcher = GuardedFetcher(allow_hosts={f"LOCALHOST:{one.port}"})
        assert b"one" == (await fetcher.fetch(one.url("localhost"), max_bytes=10, seconds=10)).data
        await _refused(fetcher, two.url("localhost"))
        await _refused(fetcher, one.url("127.0.0.1"))
        assert [] == two.requests


@pytest.mark.parametrize("service", ["memory", "tool_executor"])
def test_a_service_starts_without_the_client_that_it_may_fetch_with(service: str):
    code = (
        f"import sys, turnwire.{service}.app; print('turnwire.runtime.fetch' in sys.modules, 'aiohttp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": SERVICES}
    )

    assert "True False" == done.stdout.strip()
