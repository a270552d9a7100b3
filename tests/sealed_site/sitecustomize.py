"""On the path of Python programs that a test starts while everything is sealed: it is in them, too."""

import os
import sys

if "NEARLITE_TEST_SEALED" in os.environ:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import sealing

    sealing.seal()
