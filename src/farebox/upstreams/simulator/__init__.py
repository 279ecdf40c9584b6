"""A faithful, deterministic Messages API server: the upstream of the demo and the bench of the tests."""

from farebox.upstreams.simulator.knobs import Knobs
from farebox.upstreams.simulator.server import Request, Simulator

__all__ = ["Knobs", "Request", "Simulator"]
