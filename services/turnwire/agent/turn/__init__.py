"""One turn: what comes next, and the doing of it; a file a kind of step."""
