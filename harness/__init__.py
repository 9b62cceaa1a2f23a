"""The reference ImageNet benchmark harness."""

import os

__version__ = "0.1.0"

# A thread that is done with its part of an operator sleeps until the next one. By default it spins,
# which keeps other processes (DALI's threads, another rank) from the core that the rest of the
# operator needs: on a busy machine a step then takes up to ten times as long. OpenMP reads this
# when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
