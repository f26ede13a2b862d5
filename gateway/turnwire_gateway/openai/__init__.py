"""OpenAI's API: chat completions by models of the mesh or by its agents, and the list of both."""
