"""The trainer: events in, a bundle out. May import `stream_worker`, never the reverse."""
