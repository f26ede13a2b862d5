"""Files in and out over HTTP, kept by the real tool executor."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway.edge import Edge, running_edge

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

pytestmark = pytest.mark.mesh

CONTENT = os.urandom(700_000)


def _edge(**settings: Any) -> AbstractAsyncContextManager[Edge]:
    return running_edge(services=("tool_executor",), providers={"tool_executor": []}, **settings)


async def _put(edge: Edge, content: bytes, query: str = "name=random.bin", **headers: str) -> dict[str, Any]:
    async with edge.http.put(f"{edge.url}/v1/artifacts?{query}", data=content, headers=headers) as response:
        assert 201 == response.status, await response.text()
        return await response.json()


async def test_a_file_comes_back_as_it_went():
    async with _edge() as edge:
        known = await _put(edge, CONTENT, "name=Bücher%20%26%20mehr.bin", **{"content-type": "application/x-thing"})
        assert ("Bücher & mehr.bin", str(len(CONTENT))) == (known["name"], known["sizeBytes"])
        assert hashlib.sha256(CONTENT).hexdigest() == known["sha256"]
        address = f"{edge.url}/v1/artifacts/{known['artifactId']}"
        async with edge.http.get(address) as response:
            assert CONTENT == await response.read()
            assert (200, str(len(CONTENT))) == (response.status, response.headers["content-length"])
            assert ("application/x-thing", "bytes") == (
                response.headers["content-type"],
                response.headers["accept-ranges"],
            )
            told = response.headers["content-disposition"]
            assert "attachment; filename*=UTF-8''B%C3%BCcher%20%26%20mehr.bin" == told
            etag = response.headers["etag"]
        async with edge.http.head(address) as response:
            assert (200, str(len(CONTENT)), b"") == (
                response.status,
                response.headers["content-length"],
                await response.read(),
            )
        async with edge.http.get(address, headers={"if-none-match": etag}) as response:
            assert 304 == response.status


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=600000-", 600_000, 700_000),
        ("bytes=-7", 699_993, 700_000),
        ("bytes=699999-9999999", 699_999, 700_000),
        ("bytes=-9999999", 0, 700_000),
    ],
)
async def test_a_range_is_that_part(asked: str, start: int, end: int):
    async with _edge() as edge:
        known = await _put(edge, CONTENT)
        address = f"{edge.url}/v1/artifacts/{known['artifactId']}"
        async with edge.http.get(address, headers={"range": asked}) as response:
            assert CONTENT[start:end] == await response.read()
            assert (206, f"bytes {start}-{end - 1}/700000") == (response.status, response.headers["content-range"])


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"])
async def test_what_is_no_range_of_ours_is_answered_with_the_whole(asked: str):
    async with _edge() as edge:
        known = await _put(edge, b"0123456789")
        address = f"{edge.url}/v1/artifacts/{known['artifactId']}"
        async with edge.http.get(address, headers={"range": asked}) as response:
            assert (200, b"0123456789") == (response.status, await response.read())
        other = {"range": "bytes=0-1", "if-range": '"another version"'}
        async with edge.http.get(address, headers=other) as response:
            assert (200, b"0123456789") == (response.status, await response.read())


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=100-200", "bytes=-0"])
async def test_a_range_beyond_the_file_is_refused_with_its_size(asked: str):
    async with _edge() as edge:
        known = await _put(edge, b"0123456789")
        async with edge.http.get(
            f"{edge.url}/v1/artifacts/{known['artifactId']}", headers={"range": asked}
        ) as response:
            assert (416, "bytes */10") == (response.status, response.headers["content-range"])


async def test_pages_and_programs_made_by_strangers_are_downloads():
    async with _edge() as edge:
        page = b"<script>alert(1)</script>"
        known = await _put(edge, page, "name=evil.html", **{"content-type": "text/html; charset=utf-8"})
        async with edge.http.get(f"{edge.url}/v1/artifacts/{known['artifactId']}") as response:
            assert response.headers["content-disposition"].startswith("attachment")
            assert "sandbox; default-src 'none'" == response.headers["content-security-policy"]
            assert "nosniff" == response.headers["x-content-type-options"]


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("", 400, "name is required"),
        ("name=x&color=red", 400, "color is no parameter of this route"),
        ("name=x&sha256=" + "0" * 64, 400, "sha256"),
    ],
)
async def test_an_upload_that_cannot_be_is_refused_with_why(query: str, status: int, told: str):
    async with _edge() as edge:
        async with edge.http.put(f"{edge.url}/v1/artifacts?{query}", data=b"x") as response:
            assert status == response.status
            assert told in (await response.json())["message"]


async def test_an_unknown_artifact_is_not_found_and_an_absent_service_is_unavailable():
    async with _edge() as edge:
        async with edge.http.get(f"{edge.url}/v1/artifacts/art_none") as response:
            assert (404, "not_found") == (response.status, (await response.json())["code"])
    async with running_edge(services=("inference",)) as edge:
        async with edge.http.put(f"{edge.url}/v1/artifacts?name=x", data=CONTENT) as response:
            assert (503, "unavailable") == (response.status, (await response.json())["code"])


async def test_a_cut_upload_leaves_nothing_and_the_key_decides_who_may():
    keys = [{"name": "anna", "key": "k" * 16}, {"name": "vera", "key": "v" * 16, "roles": ["viewer"]}]
    async with _edge(access={"api_keys": keys, "mesh_secret": "s" * 32}) as edge:
        for key, status in (("", 401), (f"Bearer {'v' * 16}", 403)):
            headers = {"authorization": key} if key else {}
            async with edge.http.put(f"{edge.url}/v1/artifacts?name=x", data=b"x", headers=headers) as response:
                assert status == response.status
        anna = {"authorization": f"Bearer {'k' * 16}"}
        port = edge.mesh.settings.port("gateway")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"PUT /v1/artifacts?name=cut.bin HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {anna['authorization']}\r\n"
        )
        writer.write(f"{head}content-length: 1000000\r\n\r\n".encode() + b"x" * 300_000)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await _put(edge, b"whole", "name=whole.txt", **anna)
        name = "turnwire.tool_executor.v1.ArtifactService/ListArtifacts"
        listed: Any = (await edge.connect(name, b"{}", "json", anna)).messages[0]
        assert ["whole.txt"] == [artifact.name for artifact in listed.artifacts]
