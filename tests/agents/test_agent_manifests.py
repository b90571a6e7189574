"""The manifests in examples/agents: valid YAML, and commands that the agent understands."""

from pathlib import Path

import pytest
import yaml

from cjm_worker_ext.commands.agent import _parser, address_of

FOLDER = Path(__file__).parents[2] / "examples" / "agents"


def commands(found):
    "Every command of a document, wherever it stands."
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "command":
                yield value
            else:
                yield from commands(value)
    elif isinstance(found, list):
        for value in found:
            yield from commands(value)


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
def test_the_command_of_an_agent(name):
    documents = list(yaml.safe_load_all((FOLDER / name).read_text()))
    (command,) = [found for document in documents for found in commands(document) if found[0] == "cjm-worker-agent"]
    options = _parser().parse_args(command[1:])
    assert address_of(options.listen) == ("0.0.0.0", 7000) and options.workers == 4
    assert options.token_file, "an agent that others reach needs a token"


def test_the_parts_of_kubernetes_belong_together():
    service, agents, policy = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    labels = agents["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == agents["spec"]["selector"]["matchLabels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert agents["spec"]["serviceName"] == service["metadata"]["name"]
    (container,) = agents["spec"]["template"]["spec"]["containers"]
    (volume,) = agents["spec"]["template"]["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    path = container["command"][-1]
    assert path == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"
