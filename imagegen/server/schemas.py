"""The requests and responses, which `imagegen.contract.schemas` defines, under their first path."""

from imagegen.contract.schemas import *  # noqa: F403
