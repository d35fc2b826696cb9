"""The requests and responses, which `imagegen.contract` defines, under their first path."""

from imagegen.contract.responses import *  # noqa: F403
from imagegen.contract.schemas import *  # noqa: F403
