"""`wolfram_alpha` at the fake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.wolfram_server import APP_ID, fake_wolfram
from tests.tool_executor.calling import executor_of
from turnwire.common.v1 import error_pb2

if TYPE_CHECKING:
    from tests.fakes.wolfram_server import FakeWolfram

pytestmark = pytest.mark.mesh


def _provider(fake: FakeWolfram, **config: Any) -> dict[str, Any]:
    here = {"base_url": fake.base_url, "api_key": APP_ID, **config}
    return {"provider_id": "wolfram", "provider_type": "remote::wolfram-alpha", "config": here}


async def test_an_answer_is_its_pods_as_text():
    async with fake_wolfram() as fake, executor_of(_provider(fake)) as executor:
        ran = await executor.run("wolfram_alpha", {"query": "population of France"})

    expected = "Input interpretation:\npopulation of France\n\nResult:\n66.4 million people"
    assert expected == ran.result.content
    assert {"units": "metric", "format": "plaintext", "output": "json"}.items() <= fake.queries[0].items()


async def test_what_it_does_not_understand_is_a_failure_with_a_hint():
    async with fake_wolfram() as fake, executor_of(_provider(fake)) as executor:
        ran = await executor.run("wolfram_alpha", {"query": "population of Frnce"})

    assert error_pb2.ERROR_REASON_TOOL_FAILED == ran.reason
    assert "Did it mean population?" in ran.result.failure.message


async def test_an_app_id_that_is_unknown_is_named_so_and_not_told(capfd: pytest.CaptureFixture[str]):
    wrong = "WRONG+APPID"
    async with fake_wolfram() as fake, executor_of(_provider(fake, api_key=wrong)) as executor:
        ran = await executor.run("wolfram_alpha", {"query": "2+2"})
    async with executor_of(_provider(fake, api_key=wrong)) as executor:
        away = await executor.run("wolfram_alpha", {"query": "2+2"})

    assert error_pb2.ERROR_REASON_PROVIDER_UNAUTHENTICATED == ran.reason
    assert error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE == away.reason
    logged = capfd.readouterr()
    for form in (wrong, "WRONG%2BAPPID"):
        assert form not in f"{ran.result}{away.result}{logged.out}{logged.err}"
