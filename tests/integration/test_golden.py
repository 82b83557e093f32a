"""Compare everything that can be seen of a worker with what it was before the refactoring.

``golden/recorded`` has the bytes of the events, replies and rejected copies, the stored documents,
the validators and indexes, and what the broker has declared. ``golden/__main__.py`` says how to
record, and when that is right.
"""

import pytest

# These import lines name the package under test; so does one in golden/__main__.py.
from outplan.testing.servers import Servers
from tests.integration.golden.recording import KINDS, can_be_made, compare, make

_SHOWN = 10


@pytest.mark.timeout(300)  # A busy machine takes its time for 270 transactions.
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_what_was_recorded(servers: Servers, kind: str) -> None:
    if not can_be_made(kind, servers):
        pytest.skip("needs a MongoDB that can be paused, so not one that is given by URL")

    different = compare(kind, make(kind, servers))

    if different:
        more = f"\nand {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        pytest.fail(
            f"{len(different)} differences:\n" + "\n".join(different[:_SHOWN]) + more, False
        )
