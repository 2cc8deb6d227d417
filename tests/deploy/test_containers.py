"""Dockerfile and docker-compose.yml: what must hold in them, and that they name only what exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import app
from service.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_hardened(name: str) -> None:
    """No container can write outside its volumes and /tmp, gain rights, or take all memory."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert {"mem_limit", "pids_limit"} <= service.keys()
    assert not {"privileged", "cap_add", "pid", "ipc"} & service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    """The demo runs without keys, so no other machine may reach it."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
    assert SERVICES[name].get("network_mode") != "host"


def test_service_cannot_write_the_store() -> None:
    """Only the training job writes the store."""
    assert SERVICES["train"]["volumes"] == ["model_store:/model_store"]
    assert SERVICES["service"]["volumes"] == ["model_store:/model_store:ro"]


def test_service_waits_for_the_trained_model() -> None:
    """`docker compose up` serves after the one-shot training has ended well."""
    assert SERVICES["service"]["depends_on"]["train"] == {"condition": "service_completed_successfully"}
    assert SERVICES["train"]["restart"] == "no"


def test_the_image_is_built_once() -> None:
    """By one service; the others wait for it, and nobody asks a registry for it."""
    ours = {name: service for name, service in SERVICES.items() if service["image"] == "autoencoder-service"}
    assert [name for name, service in ours.items() if "build" in service] == ["train"]
    assert all(service["pull_policy"] in ("build", "never") for service in ours.values())


def test_train_command_is_understood() -> None:
    """An option that is renamed would stop the demo at its first step."""
    name, *arguments = SERVICES["train"]["command"]
    with app.commands[name].make_context(name, arguments) as context:
        assert context.params["if_missing"] is True


def test_grace_period_covers_the_drain() -> None:
    """Docker must not kill the service while it finishes accepted requests."""
    grace_s = float(SERVICES["service"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_timeout_s"].default


def test_environment_names_settings() -> None:
    """A setting that is renamed must not leave an ignored variable behind."""
    named = set(re.findall(rf"\b{ENV_PREFIX}([A-Z_]+)\b", DOCKERFILE))
    named |= {
        name.removeprefix(ENV_PREFIX) for name in SERVICES["service"]["environment"] if name.startswith(ENV_PREFIX)
    }
    assert named >= {"STORE", "HOST", "PORT", "ALLOW_ANONYMOUS"}
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_image_does_not_run_as_root() -> None:
    """The user is a number, so that a platform can check it without the image's passwd file."""
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert all(int(number) >= 1000 for number in user)


def test_build_context_has_what_the_image_copies_and_no_more() -> None:
    """.dockerignore lets through exactly the sources of COPY."""
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        copied.update(line.split()[:-1])
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    assert "*" in rules
    assert let_through == copied
    assert all((ROOT / path).exists() for path in copied)


def test_mounted_files_exist() -> None:
    """Docker makes an empty folder of a bind mount whose source is missing."""
    sources = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [source for source in sources if source.startswith("./")]
    assert files
    assert all((ROOT / file).exists() for file in files)
