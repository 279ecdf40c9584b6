"""Several gateway processes behind one listening socket: who starts them, and how what they count adds up."""

from farebox.workers.serve import serve_with_workers

__all__ = ["serve_with_workers"]
