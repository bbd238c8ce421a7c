from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def config() -> dict[str, Any]:
    text = (Path(__file__).parents[2] / "ray-cluster.yaml").read_text("utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def checked(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415 - slow to import

    validate_config(prepare_config(config))


def test_rays_own_validation_accepts_the_cluster(config: dict[str, Any]) -> None:
    checked(config)
    assert {"head", "prompt", "batch"} == set(config["available_node_types"])


def test_that_validation_would_refuse_a_misspelt_key(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="max_wrokers"):
        checked(config | {"max_wrokers": 3})
