"""The processes of a gateway: one or several behind one socket, their successors, and how their figures add up."""

from farebox.workers.alone import serve_alone
from farebox.workers.serve import serve_with_workers
from farebox.workers.succession import find_heritage

__all__ = ["find_heritage", "serve_alone", "serve_with_workers"]
