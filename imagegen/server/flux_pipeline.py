"""The pipeline, by the path that the project began with; it is defined in `imagegen.model`."""

from imagegen.model.config import FluxConfig as FluxConfig
from imagegen.model.pipeline import FluxPipeline as FluxPipeline
