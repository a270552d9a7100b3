"""The module under the name that it has in the standard library: ``sqlite3.dbapi2``."""

from nearlite import *  # noqa: F403 - all of it
from nearlite import __getattr__  # noqa: F401
