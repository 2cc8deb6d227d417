"""Where this process stands among those that train one model. Imports no TensorFlow."""

import json
import os
from dataclasses import dataclass

from service.errors import ConfigurationError

TF_CONFIG = "TF_CONFIG"


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those of the run."""

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0


def own_place() -> Place:
    """From the environment variable ``TF_CONFIG``, as Kubeflow and others set it; alone where there is none.

    Raises:
        ConfigurationError: it is not what it should be.
    """
    text = os.environ.get(TF_CONFIG, "").strip()
    if not text:
        return Place(0, 1)
    try:
        content = json.loads(text)
        cluster, task = content["cluster"], content["task"]
        names = [(kind, at) for kind in ("chief", "worker") for at in range(len(cluster.get(kind, ())))]
        return Place(names.index((task["type"], int(task["index"]))), len(names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f'{TF_CONFIG} must be JSON as {{"cluster": {{"worker": ["host:port", …]}}, '
            '"task": {"type": "worker", "index": 0}}, the task being one of the cluster.'
        ) from error
