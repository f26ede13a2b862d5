"""Figures of matplotlib become PNG files of the workspace: at `show()`, and those left open at the end of a run.

This module is also the backend that matplotlib is told to use.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_SAVED = "_turnwire_saved"


def save_open() -> None:
    """Saves the figures that are open and were not saved by the code itself, and closes all."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        if not getattr(figure, _SAVED, False) and (figure.axes or figure.texts):
            figure.savefig(_free_name(), format="png", bbox_inches="tight")
    pyplot.close("all")


def _free_name() -> str:
    number = 1
    while os.path.lexists(name := f"figure-{number}.png"):
        number += 1
    return name


# What matplotlib asks a backend for; it is loaded by name, by those who draw.
def __getattr__(name: str) -> Any:
    if name not in {"FigureCanvas", "FigureManager"}:
        raise AttributeError(name)
    from matplotlib.backend_bases import FigureManagerBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    class FigureManager(FigureManagerBase):
        """Shows by saving."""

        @classmethod
        def pyplot_show(cls, *, block: bool | None = None) -> None:
            save_open()

    class FigureCanvas(FigureCanvasAgg):
        """Notes that a figure was saved by the code itself."""

        manager_class = FigureManager  # pyright: ignore[reportAssignmentType] - as its own backends do

        def print_figure(self, *arguments: Any, **named: Any) -> Any:
            result = super().print_figure(*arguments, **named)
            setattr(self.figure, _SAVED, True)
            return result

    found = {"FigureCanvas": FigureCanvas, "FigureManager": FigureManager}
    globals().update(found)
    return found[name]
