"""The edge of a mesh: the contract over HTTP, server-sent events, an OpenAI-compatible API, and the console."""
