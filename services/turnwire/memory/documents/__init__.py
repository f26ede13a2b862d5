"""Documents as text in chunks: `DocumentReader` reads files that somebody else made, in processes that may die of them.

`document` says what comes out and what the limits are, `formats` has a module a format, `chunking` cuts. The process
that reads (`worker`, behind `process`) imports this package: nothing here may bring gRPC along.
"""

from turnwire.memory.documents.document import Chunk, Limits, ParsedDocument
from turnwire.memory.documents.reader import DocumentReader

__all__ = ["Chunk", "DocumentReader", "Limits", "ParsedDocument"]
