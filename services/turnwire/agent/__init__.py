"""The agent service: agents, sessions, and the turns in them."""
