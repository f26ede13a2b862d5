"""Files that sessions and tools keep: contents by their hash behind a port, and what is known of them in the store."""

from turnwire.tool_executor.artifacts.artifacts import Artifacts, Draft
from turnwire.tool_executor.artifacts.folder import FolderBlobs
from turnwire.tool_executor.artifacts.port import Blobs
from turnwire.tool_executor.artifacts.sniffing import sniffed

__all__ = ["Artifacts", "Blobs", "Draft", "FolderBlobs", "sniffed"]
