"""Tools written into a prompt, and calls read out of an answer, for models whose server has no tool interface."""

from turnwire.inference.tool_formats.reading import CallReader
from turnwire.inference.tool_formats.writing import call_schema, is_forced, offered, rewritten

__all__ = ["CallReader", "call_schema", "is_forced", "offered", "rewritten"]
