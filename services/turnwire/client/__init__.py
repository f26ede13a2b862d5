"""The Python client of Turnwire: typed, asynchronous, resuming.

```python
async with Client.connect() as client:
    session = await client.create_session("assistant")
    async with client.run_turn(session.session_id, "What is a monad?") as turn:
        async for event in turn:
            ...
    print(turn.text)
```
"""

from turnwire.client.client import Client, user_message
from turnwire.client.finding import find_mesh
from turnwire.client.function_tools import function_tool
from turnwire.client.turn_stream import TurnStream

__all__ = ["Client", "TurnStream", "find_mesh", "function_tool", "user_message"]
