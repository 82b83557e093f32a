"""Run ``outplan`` with a defect: ``python -m tests.faults.chaos.planted run``, or ``partitions 4``.

PLANTED_FAULT in the environment names a fault in its code, see ``plants``; the other variables are
those of ``tests.support.faulty_worker``.
"""

import os

from outplan.cli.app import main
from tests.faults.chaos.plants import plant
from tests.support.faulty_worker import install_faults

if __name__ == "__main__":
    install_faults()
    plant(os.environ.get("PLANTED_FAULT"))
    main()
