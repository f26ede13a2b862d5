"""The developer's commands behind `./dev`."""
