"""`photogen` at the fake: the picture is a file and an attachment of the result."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.images_server import KEY, PICTURE, fake_images
from tests.tool_executor.calling import drawing, executor_of
from turnwire.common.v1 import error_pb2, generation_pb2
from turnwire.tool_executor.v1 import tool_service_pb2

pytestmark = pytest.mark.mesh
PROMPT = {"prompt": "a red point"}


async def test_a_picture_is_kept_and_attached():
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        ran = await executor.run("photogen", PROMPT)
        (attachment,) = ran.result.attachments
        data = await executor.download(attachment.artifact_id)

    assert PICTURE == data
    assert ("picture.png", "image/png") == (attachment.name, attachment.mime_type)
    assert "picture.png" in ran.result.content
    assert [{"model": "gpt-image-1", "prompt": "a red point", "n": 1}] == fake.requests


async def test_a_picture_behind_an_address_is_fetched_where_the_operator_allows_it():
    async with fake_images() as fake:
        async with executor_of(drawing(fake), fetch={"allow_hosts": [fake.host]}) as executor:
            fake.script = ["url"]
            ran = await executor.run("photogen", PROMPT)
            assert PICTURE == await executor.download(ran.result.attachments[0].artifact_id)
        async with executor_of(drawing(fake)) as executor:
            fake.script = ["url"]
            refused = await executor.run("photogen", PROMPT)

    assert "A very red point" in ran.result.content
    assert error_pb2.ERROR_REASON_DOCUMENT_REFUSED == refused.reason


async def test_a_registered_tool_has_its_own_model_and_size():
    request = tool_service_pb2.RegisterToolRequest(
        tool_id="sketch",
        definition=generation_pb2.ToolDefinition(name="sketch"),
        config_json='{"model": "sdxl", "size": "512x512"}',
    )
    async with fake_images() as fake, executor_of(drawing(fake, response_format="b64_json")) as executor:
        await executor.call("RegisterTool", request)
        await executor.run("sketch", PROMPT)

    assert {"model": "sdxl", "size": "512x512", "response_format": "b64_json"}.items() <= fake.requests[0].items()


@pytest.mark.parametrize(
    ("behaviour", "config", "reason", "words"),
    [
        ("text", {}, error_pb2.ERROR_REASON_PROVIDER_ERROR, "no picture"),
        ("not base64", {}, error_pb2.ERROR_REASON_PROVIDER_ERROR, "base64"),
        ("empty", {}, error_pb2.ERROR_REASON_PROVIDER_ERROR, "`data`"),
        ("policy", {}, error_pb2.ERROR_REASON_PROVIDER_ERROR, "safety system"),
        ("good", {"api_key": "wrong-key"}, error_pb2.ERROR_REASON_PROVIDER_UNAUTHENTICATED, "api_key"),
        ("good", {"response_format": "b64_json"}, error_pb2.ERROR_REASON_PROVIDER_ERROR, "response_format"),
    ],
)
async def test_what_is_no_picture_is_a_failure(behaviour: str, config: dict[str, Any], reason: int, words: str):
    async with fake_images() as fake, executor_of(drawing(fake, **config)) as executor:
        fake.script = [behaviour]
        ran = await executor.run("photogen", PROMPT)

    assert reason == ran.reason
    assert words in ran.result.failure.message
    assert not ran.result.attachments
    for secret in (KEY, "wrong-key"):
        assert secret not in str(ran.result)
