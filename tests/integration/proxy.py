"""A way to the broker that can be cut: at once, after so many bytes, or on one side only."""

from tests.support.balancer import Balancer as Proxy
from tests.support.balancer import balanced as proxied

__all__ = ["Proxy", "proxied"]
