"""The turn log: events with sequence ranges, one writer, many cursors."""
