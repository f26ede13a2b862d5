"""The RPCs of `turnwire.memory.v1.MemoryBankService`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.memory import validation
from turnwire.memory.v1 import memory_bank_service_pb2 as messages
from turnwire.memory.v1.memory_bank_service_pb2_grpc import MemoryBankServiceServicer
from turnwire.runtime.failpoints import declare_methods
from turnwire.runtime.identity import current
from turnwire.runtime.paging import decode_position, encode_position, page_size

if TYPE_CHECKING:
    import grpc

    from turnwire.memory.registry import Banks

    Context = grpc.aio.ServicerContext[Any, Any]

declare_methods(messages.DESCRIPTOR.services_by_name["MemoryBankService"], "RegisterMemoryBank")


class MemoryBankServicer(MemoryBankServiceServicer):
    """Serves the registry of memory banks."""

    def __init__(self, banks: Banks) -> None:
        """Works on `banks`."""
        self._banks = banks

    async def ListMemoryBanks(
        self, request: messages.ListMemoryBanksRequest, context: Context
    ) -> messages.ListMemoryBanksResponse:
        """Lists the banks, by id."""
        limit = page_size(request.page_size)
        (last,) = decode_position(request.page_token, ("",))
        banks = [bank for bank in await self._banks.all(current().tenant) if bank.message.bank_id > str(last)]
        page = banks[:limit]
        token = encode_position(page[-1].message.bank_id) if len(banks) > limit else ""
        described = [await self._banks.described(bank) for bank in page]
        return messages.ListMemoryBanksResponse(banks=described, next_page_token=token)

    async def GetMemoryBank(
        self, request: messages.GetMemoryBankRequest, context: Context
    ) -> messages.GetMemoryBankResponse:
        """Gets one bank."""
        validation.check_bank(request.bank_id)
        bank = await self._banks.get(current().tenant, request.bank_id)
        return messages.GetMemoryBankResponse(bank=await self._banks.described(bank))

    async def RegisterMemoryBank(
        self, request: messages.RegisterMemoryBankRequest, context: Context
    ) -> messages.RegisterMemoryBankResponse:
        """Makes a bank."""
        validation.check_register(request)
        bank = await self._banks.register(current().tenant, request)
        return messages.RegisterMemoryBankResponse(bank=await self._banks.described(bank))

    async def UnregisterMemoryBank(
        self, request: messages.UnregisterMemoryBankRequest, context: Context
    ) -> messages.UnregisterMemoryBankResponse:
        """Removes a bank and what it holds."""
        validation.check_bank(request.bank_id)
        await self._banks.unregister(current().tenant, request.bank_id)
        return messages.UnregisterMemoryBankResponse()
