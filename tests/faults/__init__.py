"""Turns hit by faults at named places of the code; `docs/faults.md` says what was found."""
