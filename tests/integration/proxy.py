"""A way to the broker that can be cut: at once, after so many bytes, or on one side only."""

from tests.faults.balancer import Balancer as Proxy
from tests.faults.balancer import balanced as proxied

__all__ = ["Proxy", "proxied"]
